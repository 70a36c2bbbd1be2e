"""Words that change an answer: opposites, members of exclusive groups, negation, duty and amount.

Each line of a table is one group; `|` parts its sides, and words of one side mean the same. Two
texts that name different sides of a group ask different things.
"""

from __future__ import annotations

OPPOSITES = """
enable activate turn_on switch_on|disable deactivate turn_off switch_off
open|close shut
start begin launch initiate|stop end finish terminate quit
increase raise grow rise|decrease lower reduce shrink fall drop
add include insert append|remove delete exclude erase
install|uninstall
lock|unlock
block ban|unblock unban
freeze|unfreeze
mute|unmute
subscribe|unsubscribe
encrypt|decrypt
encode|decode
compress zip|decompress unzip extract
upload|download
import|export
send transmit|receive
deposit pay_in|withdraw
buy purchase|sell
borrow|lend
login|logout
connect|disconnect
attach|detach
accept approve|reject decline deny refuse
allow permit|forbid prohibit prevent
show display reveal|hide conceal
win|lose
save|spend waste
push|pull
enter|exit leave
arrive|depart
hire recruit|fire dismiss
join|split separate
heat warm|cool chill
load|unload
pack|unpack
expand|collapse
upgrade|downgrade
credit|debit
incoming inbound|outgoing outbound
before prior|after
above over|below under beneath
inside indoor indoors|outside outdoor outdoors
up upward|down downward
left|right
forward|backward backwards
top|bottom
front|rear
horizontal horizontally|vertical vertically
ascending|descending
clockwise|counterclockwise anticlockwise
plus sum|minus difference|times product multiplied|divided quotient
even|odd
positive|negative
true|false
public|private
internal|external
local|remote
online|offline
legal lawful|illegal unlawful
safe|unsafe dangerous
possible|impossible
valid|invalid
visible|invisible
healthy|unhealthy
benefit advantage pro|drawback disadvantage downside con
strength|weakness
cause|effect consequence
symptom|treatment cure
hot|cold
wet|dry
fast quick|slow
high|low
big large|small little
heavy|light
long|short
deep|shallow
wide|narrow
thick|thin
hard difficult|easy simple
rich|poor
new|old used
early|late
full|empty
cheap inexpensive|expensive costly
strong|weak
loud|quiet
sweet|salty|sour|bitter
raw|cooked
fresh|frozen
single|married
formal|informal casual
fixed|variable
gross|net
best|worst
most|least fewest
more|less fewer
maximum max at_most up_to highest|minimum min at_least lowest
largest biggest greatest|smallest
longest|shortest
tallest|smallest
fastest quickest|slowest
cheapest|most_expensive priciest costliest
oldest|youngest newest
nearest closest|farthest furthest
earliest|latest
first|second|third|fourth|last final
hottest warmest|coldest coolest
richest|poorest
heaviest|lightest
easiest simplest|hardest
more_than exceed|less_than
"""

EXCLUSIVE = """
yesterday|today tonight|tomorrow
last|this|next upcoming following
past previous former|present current currently|future
monday|tuesday|wednesday|thursday|friday|saturday|sunday
january jan|february feb|march|april apr|may|june jun|july jul|august aug|september sep sept|\
october oct|november nov|december dec
spring|summer|autumn fall|winter
hourly per_hour|daily per_day|weekly per_week|monthly per_month|quarterly|yearly annual annually \
per_year
second|minute|hour|day|week|month|year|decade|century
morning|afternoon|evening|night midnight|noon
breakfast|lunch|dinner supper
adult grown-up|child kid|infant baby newborn toddler|teenager teen|senior elderly
man men male husband father|woman women female wife mother
boy|girl
cat|dog|horse|rabbit|bird
beginner novice|intermediate|expert advanced professional
north|south|east|west
python|javascript|typescript|java|rust|golang|ruby|php|perl|swift|kotlin|scala|haskell|bash|sql
windows|linux|macos mac|android|ios
json|yaml|xml|csv|html|markdown|pdf|latex
table|list bullet bullets|paragraph essay|poem haiku
english|french|spanish|german|italian|portuguese|dutch|russian|chinese|japanese|korean|arabic|hindi
metre meter|kilometre kilometer km|centimetre centimeter cm|mile|foot feet|inch|yard
gram|kilogram kg|pound lb|ounce oz
celsius|fahrenheit|kelvin
litre liter|gallon|pint
dollar usd|euro eur|pound gbp|yen jpy|franc chf|yuan
red|green|blue|yellow|orange|purple|pink|black|white|brown|grey gray
email|phone|letter|sms
card|cash|cheque|transfer
virtual|physical
visa|mastercard|amex
vegan|vegetarian|gluten-free
"""

# Compared only where the rest of two texts is nearly the same; elsewhere: a way of speaking.
MANNER = """
must mandatory required obliged have_to need_to compulsory|should ought recommended advisable|\
may might could optional allowed can able
all every each always everything entire whole|some sometimes several certain few|\
none never nothing no|only just|most usually mostly|any|both|either
who whom|when|where|why
my mine our|your|his|her|their
"""

SYNONYMS = """
get obtain acquire
schedule book arrange
say show state list display
put place
method way
method approach
amount sum
picture photo image
movie film
route path
buy purchase
error mistake
issue problem
quick rapid
kid child
"""

NEGATIONS = frozenset(
    "not no never none nobody nothing neither nor without cannot except".split()  # noqa: SIM905
)

PHRASES = (
    ("turn on", "turn_on"), ("turning on", "turn_on"), ("turned on", "turn_on"),
    ("switch on", "switch_on"), ("turn off", "turn_off"), ("turning off", "turn_off"),
    ("turned off", "turn_off"), ("switch off", "switch_off"), ("log in", "login"),
    ("sign in", "login"), ("log on", "login"), ("log out", "logout"), ("sign out", "logout"),
    ("log off", "logout"), ("at least", "at_least"), ("at most", "at_most"), ("up to", "up_to"),
    ("no more than", "at_most"), ("no less than", "at_least"), ("more than", "more_than"),
    ("less than", "less_than"), ("fewer than", "less_than"), ("most expensive", "most_expensive"),
    ("have to", "have_to"), ("has to", "have_to"), ("need to", "need_to"), ("needs to", "need_to"),
    ("pay in", "pay_in"), ("per hour", "per_hour"), ("per day", "per_day"), ("a day", "per_day"),
    ("per week", "per_week"), ("a week", "per_week"), ("per month", "per_month"),
    ("a month", "per_month"), ("per year", "per_year"), ("a year", "per_year"),
    ("close to", "near"), ("right now", "now"), ("right away", "now"), ("no longer", "not"),
    ("of course", ""), ("how long", "duration"), ("how far", "distance"), ("how old", "age"),
    ("how often", "frequency"),
)  # fmt: skip

_GRAMMAR = """
a an the this that these those there here it its i me my mine we us our you your he him his she
her they them their one what which who whom whose when where why how do does did doing done is
are was were be been being am have has had having will would shall can could may might must
should ought need want like please tell give let know explain describe show help find out
get got go going about of to in on at by for with from as into onto and or but if then than so
too also just really very some any all both each every hi hello hey thanks thank ok okay way
ways step steps thing things kind sort some suppose happen happens possible able try trying make
makes made use using used much many more most such up down off over under again not no never nor
cannot without except now currently actually still already exactly have_to need_to wanna gonna
also ever even s t d ll ve re m
"""
STOP = frozenset(_GRAMMAR.split())


_COUNTED = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
"""
NUMBERS = {word: str(value) for value, word in enumerate(_COUNTED.split()) if word != "one"} | {
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "sixty": "60",
    "hundred": "100",
}


def sides(table: str) -> list[list[frozenset[str]]]:
    """The groups of a table, each a list of its sides."""
    return [
        [frozenset(side.split()) for side in line.split("|")]
        for line in table.strip().replace("\\\n", "").splitlines()
        if line.strip()
    ]
