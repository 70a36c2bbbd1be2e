"""Words that decide an answer and words that do not: what the edits of `edits` draw from.

One line of a table is a group. Members of a group of `SIBLINGS` differ in what they ask for; those
of `SYNONYMS` ask for the same. Written from general knowledge and the data sets the pair verifier
is trained on; the contrast probes it is reported on were not read.
"""

# ruff: noqa: E501  (tables: one group a line)

from __future__ import annotations

# Each line: one class; texts that differ in its member ask different things.
SIBLINGS = """
enable|disable
activate|deactivate
turn on|turn off
switch on|switch off
open|close
start|stop
begin|end
increase|decrease|double
raise|lower
add|remove
install|uninstall
lock|unlock
freeze|unfreeze
block|unblock
mute|unmute
subscribe to|unsubscribe from
encrypt|decrypt
compress|decompress
upload|download
import|export
send|receive
deposit|withdraw
buy|sell|rent
borrow|lend
log in|log out
sign in|sign out
connect|disconnect
accept|reject
approve|deny
allow|forbid
show|hide
create|delete
copy|move|rename
win|lose
save|spend
push|pull
arrive|depart|leave
hire|fire
merge|split
heat|cool
upgrade|downgrade
credit|debit
incoming|outgoing
before|after
above|below
inside|outside
indoor|outdoor
up|down
left|right
forward|backward
top|bottom
front|back
horizontal|vertical
ascending|descending
even|odd
public|private
internal|external
local|remote|international|domestic
online|offline|in person
legal|illegal
safe|dangerous
possible|impossible
visible|invisible
advantages|disadvantages
benefits|risks
pros|cons
causes|symptoms|treatments|side effects
strengths|weaknesses
hot|cold
wet|dry
fast|slow
high|low
big|small
heavy|light
long|short
deep|shallow
wide|narrow
hard|easy
difficult|simple
rich|poor
new|old
early|late
full|empty
cheap|expensive
strong|weak
loud|quiet
sweet|salty|spicy
raw|cooked|frozen
single|married|divorced
formal|informal
fixed|variable
gross|net
best|worst
most|least
maximum|minimum|average
highest|lowest
largest|smallest
longest|shortest
tallest|shortest
fastest|slowest
cheapest|most expensive
oldest|youngest|newest
nearest|farthest
earliest|latest
first|second|third|last
easiest|hardest
always|never|sometimes
all|some|none of
every|no
more than|less than|exactly
at least|at most
must|need not|must not
required|optional|forbidden
mandatory|voluntary
married|single
adult|child
adults|children|teenagers|pregnant women|seniors
men|women
students|teachers|employees|retirees
dogs|cats|rabbits|horses|birds
a dog|a cat|a hamster
puppies|kittens|adult dogs
beginners|experts|children
my|my brother's|my mother's|his|her|someone else's
employer|employee
buyer|seller
tenant|landlord
doctor|patient|nurse
teacher|student
parent|child
sender|recipient
lender|borrower
today|tomorrow|yesterday
this|last|next
monday|tuesday|wednesday|thursday|friday|saturday|sunday
january|february|march|april|june|july|august|september|october|november|december
morning|afternoon|evening|night
am|pm
daily|weekly|monthly|yearly
hourly|annual|quarterly
summer|winter|spring|autumn
weekdays|weekends
week|month|year|day|decade
minutes|hours|seconds|days
currently|previously
2018|2019|2020|2021|2022|2023|2024|2025
19th century|20th century|18th century
one|two|three|four|five|six|seven|eight|nine|ten
once|twice|three times
half|double|a quarter of
paris|london|berlin|madrid|rome|tokyo|chicago|boston|dallas|seattle|toronto|dublin|lisbon|oslo
new york|los angeles|san francisco|las vegas|hong kong
france|germany|spain|italy|japan|canada|mexico|brazil|india|china|poland|greece|egypt|kenya
the uk|the us|the netherlands|the eu
england|scotland|wales|ireland
california|texas|florida|ohio|nevada
europe|asia|africa|south america
french|german|spanish|italian|japanese|chinese|portuguese|russian
dollars|euros|pounds|yen|francs
usd|eur|gbp|aud|chf|jpy
miles|kilometers|meters|feet|inches
pounds|kilograms|grams|ounces
celsius|fahrenheit|kelvin
liters|gallons|cups|milliliters
visa|mastercard|american express
apple pay|google pay|paypal
checking|savings|joint
credit card|debit card|gift card
card|account|loan
cash|check|bank transfer|card
atm|branch|app
pin|password|username|email
phone|laptop|tablet|watch
iphone|android
windows|linux|macos
chrome|firefox|safari|edge
python|java|rust|javascript|c++|go
postgres|mysql|sqlite|mongodb
docker|kubernetes|terraform
react|vue|angular|svelte
json|xml|yaml|csv
pdf|word|excel|html
mp3|wav|flac
jpg|png|gif|svg
python 2|python 3
python 3.8|python 3.11|python 3.12
ios 15|ios 16|ios 17
windows 10|windows 11
version 1|version 2|version 3
list|set|dictionary|tuple|string
stack|queue|heap|tree
array|hash map|linked list
read|write|delete
client|server
row|column
encode|decode
apples|oranges|bananas|grapes
chicken|beef|pork|fish|tofu
rice|pasta|bread|potatoes
butter|oil|margarine
milk|cream|water
sugar|salt|flour
coffee|tea|juice
breakfast|lunch|dinner
oven|microwave|stove|grill
vegan|vegetarian|gluten-free
car|bike|motorcycle|truck|bus
train|plane|ferry|bus
flight|hotel|rental car
business class|economy class|first class
one-way|round-trip
gas|diesel|electric
front tires|rear tires
engine|brakes|battery|transmission
flu|cold|covid|measles
fever|headache|cough|rash
ibuprofen|aspirin|paracetamol|insulin
type 1 diabetes|type 2 diabetes
heart|liver|kidney|lung
earth|mars|venus|jupiter|saturn|neptune
sun|moon
gold|silver|copper|platinum
oxygen|nitrogen|hydrogen|helium
north|south|east|west
north korea|south korea
mozart|beethoven|bach|chopin
einstein|newton|darwin|curie
google|apple|microsoft|amazon|facebook
spotify|netflix|youtube
facebook|twitter|instagram|linkedin
gmail|outlook|yahoo mail
excel|google sheets
tesla|toyota|ford|honda|bmw
president|prime minister|king|vice president
population|area|capital|currency
author|director|publisher|translator
height|weight|age|width|depth
price|size|color|weight
income tax|sales tax|property tax
mortgage|car loan|student loan
health insurance|car insurance|home insurance|travel insurance
bachelor's degree|master's degree|phd
resume|cover letter
summary|translation|outline
refund|exchange|repair
delivery|pickup
new customers|existing customers
personal|business
home address|work address|email address
physical|virtual
black|white|red|blue|green|yellow
"""

# Each line: words that may stand for each other without changing what is asked.
SYNONYMS = """
buy|purchase
get|obtain|receive
begin|start
fix|repair
big|large
small|little
quick|fast
cheap|inexpensive
correct|right
wrong|incorrect
show|display
remove|delete|get rid of
change|modify|alter
help|assist
need|require
use|utilize
choose|select|pick
end|finish
make|create
find|locate
purchase|buy
allowed|permitted
allow|permit
activate|enable|switch on|turn on
deactivate|disable|switch off|turn off
cancel|call off
verify|confirm
price|cost
car|automobile
phone|telephone|cell phone
kids|children
movie|film
doctor|physician
vacation|holiday
trash|garbage
store|shop
tv|television
city|town
job|work
error|mistake
picture|photo|image
advantages|benefits
drawbacks|disadvantages
difference|distinction
reason|cause
way|method
steps|procedure
maximum|highest
minimum|lowest
biggest|largest
quickest|fastest
cheapest|least expensive
must|have to|need to
approximately|about|roughly
also|too
currently|right now|at the moment
often|frequently
usually|normally|typically
quickly|rapidly
immediately|right away|at once
wait|hold on
talk|speak
tell me|let me know
look up|check
money|funds
transfer|payment
top up|top-up
bank account|account
declined|refused
missing|gone
stolen|taken
annually|every year|yearly
every day|daily
each month|monthly
utilized|used
bike|bicycle
plane|airplane
sick|ill
soccer|football
apartment|flat
salary|pay
company|firm
employee|worker
boss|manager
teacher|instructor
question|query
answer|reply
"""

# Ways to open a question that ask for the same, each line one way of asking.
OPENERS = """
how do i|how can i|how could i|how would i|how to|what is the way to|what do i need to do to|tell me how to|what are the steps to|what's the best way for me to|could you explain how to|please tell me how i can|i want to know how to|how should i go about trying to|show me how to|i need help to
what is|what's|tell me|can you tell me|i'd like to know|could you tell me|please tell me|do you know|i want to know
what are|tell me|can you tell me|could you list|i want to know
can i|am i able to|is it possible to|could i|is it possible for me to|will i be able to|may i
why is|for what reason is|what is the reason|how come
why did|for what reason did|how come
where can i|where could i|where do i|in which place can i|where is it possible to
how long does it take to|how much time does it take to|how much time is needed to|what time is needed to
how long does|how much time does
how much does|what does
how much is|what is the price of|what does it cost for
who is|who's|tell me who is|do you know who is|can you tell me who is
when is|when's|at what time is|tell me when is|do you know when is
when does|at what time does|what time does
do i need|do i have to have|is it necessary to have|must i have
do you|would you
can you|could you|would you|will you|please
i want to|i'd like to|i would like to|i wish to|i need to|i am trying to|i'm looking to
i need|i want|i'd like|i would like|i could use
is there|does there exist|do you have
does|do you know if
there is|there's|i see
my|my own
"""

CONTRACTIONS = """
what is|what's
where is|where's
who is|who's
how is|how's
it is|it's
that is|that's
there is|there's
i am|i'm
i have|i've
i will|i'll
i would|i'd
can not|can't
cannot|can't
do not|don't
does not|doesn't
did not|didn't
is not|isn't
are not|aren't
was not|wasn't
will not|won't
would not|wouldn't
have not|haven't
has not|hasn't
should not|shouldn't
you are|you're
"""

BEFORE = (
    "hi", "hello", "hey", "hi there", "good morning", "please", "excuse me", "quick question", "ok",
    "hello there", "so", "um", "just wondering", "sorry", "good afternoon", "i have a question",
    "could you help me", "hey there", "one question", "dear support", "well", "alright",
)  # fmt: skip
AFTER = (
    "please", "thanks", "thank you", "thank you very much", "if you could", "thanks in advance",
    "please help", "can you help", "please advise", "i'd like to know", "any idea", "cheers",
    "please let me know", "do you know", "i wonder", "many thanks", "can you tell me", "help",
    "i am curious", "thx", "pls",
)  # fmt: skip
FILLERS = ("actually", "just", "exactly", "really", "also", "simply", "please", "currently", "maybe",
           "perhaps", "generally", "usually", "basically")  # fmt: skip

# Restrictions that narrow or move what a question asks for.
RESTRICTIONS = (
    "for children", "for a business", "on weekends", "in europe", "for beginners", "abroad",
    "without a password", "on a budget", "in japan", "for two people", "at night", "in winter",
    "for free", "on my old phone", "without internet", "during pregnancy", "for a minor",
    "as a student", "on linux", "for my neighbour", "after the deadline", "before 2010",
    "without the app", "in cash", "for a dog", "by law", "with one hand", "in the 1980s",
    "without a receipt", "in latin", "for a joint account", "under water", "for diabetics",
    "on sundays", "as a foreigner", "in large quantities", "in space", "only on mobile",
    "for someone else", "without telling anyone", "if i am unemployed", "in excel",
)  # fmt: skip


def lines(table: str) -> list[tuple[str, ...]]:
    """The groups of a table."""
    return [tuple(line.split("|")) for line in table.strip().splitlines()]
