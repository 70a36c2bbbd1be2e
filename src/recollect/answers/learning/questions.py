"""Made-up questions in several wordings: what a pair verifier learns rewording and contrast from.

A line of `FRAMES` asks one thing in several ways; its slots are filled from `SLOTS`. Two wordings
with equal fillings ask for the same answer, two fillings do not, nor do swapped ones. Written from
general knowledge; the contrast probes were not read.
"""

# ruff: noqa: E501  (tables: one group a line)

from __future__ import annotations

import random
import re

from recollect.answers.learning.vocabulary import lines

FRAMES = """
How do I {act} {thing}?|What's the way to {act} {thing}?|How can I {act} {thing}?|What are the steps to {act} {thing}?|Tell me how to {act} {thing}|I'd like to know how one can {act} {thing}
How do I {act} {thing} {ctx}?|{ctx}, how can I {act} {thing}?|What must I do to {act} {thing} {ctx}?|What are the steps for someone to {act} {thing} {ctx}?
Why can't I {act} {thing}?|What is the reason I cannot {act} {thing}?|For what reason am I unable to {act} {thing}?
Is it possible to {act} {thing} {ctx}?|Can I {act} {thing} {ctx}?|Am I able to {act} {thing} {ctx}?
Do I have to {act} {thing} {ctx}?|Is it necessary to {act} {thing} {ctx}?|Must I {act} {thing} {ctx}?
How long does it take to {act} {thing}?|What time is needed to {act} {thing}?|How much time does it take to {act} {thing}?
What happens if I {act} {thing}?|What are the consequences if I {act} {thing}?|What will happen when I {act} {thing}?
What happens if I don't {act} {thing}?|What are the consequences of failing to {act} {thing}?|What if I do not {act} {thing}?
What is the {measure} of {place}?|Tell me the {measure} of {place}|{place}'s {measure}?|Which {measure} does {place} have?|Can you tell me what {place}'s {measure} is?
What is the {super} {geo} in {place}?|Which {geo} in {place} is the {super}?|Name the {super} {geo} of {place}|In {place}, which {geo} is {super}?
When was {person} born?|What is the birth date of {person}?|On which date was {person} born?|What is {person}'s date of birth?
When did {person} die?|In what year did {person} pass away?|What is the date of {person}'s death?
Who {made} {work}?|Which person {made} {work}?|By whom was {work} {made}?|Tell me who {made} {work}
How do I convert {unit} to {unit2}?|What's the formula for converting {unit} into {unit2}?|How are {unit} converted to {unit2}?|{unit} to {unit2} conversion
How do I convert {fmt} to {fmt2}?|What is the way to turn {fmt} into {fmt2}?|Converting {fmt} to {fmt2}: how is it done?
How much is {num} {unit} in {unit2}?|Convert {num} {unit} to {unit2}|What do {num} {unit} make in {unit2}?
What is {num} percent of {num2}?|Calculate {num}% of {num2}|How much is {num}% of {num2}?
How do I {code} in {lang}?|What's the {lang} way to {code}?|Show me how to {code} using {lang}|In {lang}, how can I {code}?|{lang} code to {code}
How do I {code} in {lang} {ver}?|In {lang} {ver}, how can I {code}?|Which code does {code} in {lang} {ver}?
What's new in {lang} {ver}?|Which features were added in {lang} {ver}?|What are the new features of {lang} {ver}?
What is the difference between {tech} and {tech2}?|How do {tech} and {tech2} differ?|Compare {tech} with {tech2}|{tech} versus {tech2}: what distinguishes them?
What are the {aspect} of {topic}?|List the {aspect} of {topic}|Which {aspect} does {topic} have?|Tell me about the {aspect} of {topic}
Is {topic} {quality} for {who}?|Would {topic} be {quality} for {who}?|For {who}, is {topic} {quality}?
How much {topic} should {who} have {freq}?|What amount of {topic} is recommended {freq} for {who}?|{freq}, how much {topic} do {who} need?
Can {who} take {drug}?|Is {drug} okay for {who}?|Is it safe for {who} to take {drug}?|May {drug} be taken by {who}?
What is the {bound} dose of {drug} for {who}?|Which dose of {drug} is the {bound} for {who}?|For {who}, what {bound} dose of {drug} applies?
How do I get from {city} to {city2}?|What is the route from {city} to {city2}?|How can I travel to {city2} from {city}?|I'm in {city}, how do I reach {city2}?
What's the distance from {city} to {city2} by {vehicle}?|By {vehicle}, how far is {city2} from {city}?|How far is it to {city2} from {city} by {vehicle}?
Is there a {vehicle} from {city} to {city2} {day}?|{day}, does a {vehicle} run from {city} to {city2}?|Does any {vehicle} go to {city2} from {city} {day}?
Find {class} flights from {city} to {city2} {day}|I want to fly {class} from {city} to {city2} {day}|Show {class} flights leaving {city} for {city2} {day}
What will the weather be in {city} {day}?|{day}, what's the weather like in {city}?|Weather forecast for {city} {day}|How's the weather going to be {day} in {city}?
What is the best time {ctx3} to visit {place}?|When is it best to visit {place} {ctx3}?|{ctx3}, when should I go to {place}?
Do {nat} citizens need a visa for {place}?|Is a visa required for {nat} citizens entering {place}?|To enter {place}, must {nat} citizens have a visa?
How do you say {word} in {tongue}?|What is the {tongue} word for {word}?|Translate {word} into {tongue}|{word} in {tongue}
Translate this letter from {tongue} to {tongue2}|Please render this {tongue} letter in {tongue2}|I need this letter put into {tongue2} from {tongue}
How long should I {cook} {food}?|For how long do I {cook} {food}?|What's the time to {cook} {food}?|How many minutes do I need to {cook} {food}?
What can I substitute for {food} in a recipe?|Which ingredient can replace {food} in a recipe?|What may be used instead of {food} in a recipe?
Can I substitute {food} for {food2}?|Is it okay to use {food} in place of {food2}?|May {food2} be replaced by {food}?
How many calories are in {num} {food}?|What's the calorie count of {num} {food}?|{num} {food}: how many calories?
Who is the {role} of {org}?|Who holds the position of {role} at {org}?|Tell me the name of {org}'s {role}|{org}'s {role} is who?
How do I {act} my {account} with {org}?|{org}: how can I {act} my {account}?|What is the way to {act} my {org} {account}?
What is the deadline {ctx2} for {form}?|By when must {form} be submitted {ctx2}?|Until when can I submit {form} {ctx2}?|When is {form} due {ctx2}?
Which documents do {who} need to {goal}?|What paperwork is required for {who} to {goal}?|To {goal}, what documents must {who} bring?
How much does it cost {who2} to {goal}?|What's the price {who2} to {goal}?|What are the fees {who2} to {goal}?
Can a {party} sue a {party2}?|Is a {party} allowed to sue a {party2}?|May a {party2} be sued by a {party}?
Does the {party} pay the {party2} or is it negotiable?|Must the {party2} be paid by the {party}, or is it negotiable?|Is the {party} the one who pays the {party2}, or is that negotiable?
Can {animal} eat {food}?|Is {food} okay for {animal} to eat?|Is it safe to feed {food} to {animal}?|May I give {food} to {animal}?
Did {team} beat {team2} {day}?|{day}, did {team} win against {team2}?|Was {team2} beaten by {team} {day}?
Is {city} {cmp} than {city2}?|Compared with {city2}, is {city} {cmp}?|Would you say {city} is {cmp} than {city2}?
Write a {tone} {doc} to my {rel} about {subj}|Draft a {tone} {doc} about {subj} for my {rel}|I need a {tone} {doc} on {subj} addressed to my {rel}
Summarise {subj} in {num} {piece}|Give me a {num}-{piece} summary of {subj}|I want {subj} summed up in {num} {piece}
List {num} {aspect} of {topic}|Give me {num} {aspect} of {topic}|Name {num} {aspect} that {topic} has
Give me the {aspect} of {topic} as {fmt}|Output the {aspect} of {topic} in {fmt} format|In {fmt}, list the {aspect} of {topic}
Sort {stuff} in {order} order|Put {stuff} into {order} order|Order {stuff} so that they are {order}
What should I do {rel2} {event}?|{rel2} {event}, what should I do?|Which things are to be done {rel2} {event}?
Which employees {modal} {duty}?|What kind of employees {modal} {duty}?|Tell me which employees {modal} {duty}
Are {quant} of the {items} {state}?|Is it true that {quant} of the {items} are {state}?|Would {quant} of the {items} be {state}?
What is the {price} of {product} in {place}?|How is the {price} of {product} in {place}?|In {place}, what's the {price} of {product}?
Where can {who} {goal} in {city}?|In {city}, where can {who} {goal}?|Which place in {city} lets {who} {goal}?
Set {alarm} for {num} {ampm} {day}|{day} at {num} {ampm}, set {alarm}|I want {alarm} at {num} {ampm} {day}
Remind {whom} to {goal} {day}|{day}, remind {whom} to {goal}|I want {whom} reminded to {goal} {day}
How do I tell {whom} that {claim}?|What's a way of telling {whom} that {claim}?|How can I let {whom} know that {claim}?
Is it true that {claim}?|Would you say {claim}?|Tell me whether {claim}|Can you confirm that {claim}?
"""

SLOTS = """
act|activate|deactivate|cancel|renew|reset|delete|restore|update|lock|unlock|open|close|share|transfer|register|check|change|hide|upgrade|downgrade|pause|resume|download|upload|verify|export|import|clean|replace|install|remove|enable|disable|freeze|unfreeze|reactivate
thing|my subscription|my library card|my password|my profile picture|the garage door|the dishwasher filter|my email account|a shared folder|my driving licence|the smart thermostat|my gym membership|an old laptop|my phone number|the voicemail|a bank transfer|the two-factor login|my newsletter settings|the car battery|a parking permit|my health insurance|the front camera|a calendar event|the router|the backup|my loyalty points|a group chat|the heating|the bike lock|my savings plan|the parental controls|a printed photo|the guest network|my travel pass|a domain name
ctx|on my phone|on a laptop|from abroad|without an internet connection|on the website|before the end of the month|after a hardware failure|for a second user|as a guest|on a work computer|during the trial|after thirty days|before the trial ends|by post|in the app|at the airport|in a foreign country|for my daughter|for my grandmother|with a prepaid card|without paying a fee|within one day
ctx2|this year|next year|for freelancers|for companies|for students|in 2023|in 2024|in 2025|in scotland|in canada|for late applicants
ctx3|in winter|in summer|of the year|with small children|on a budget|for skiing|for diving|to avoid crowds
measure|population|capital|area|currency|official language|time zone|highest mountain|national dish|life expectancy|climate|flag|calling code|average income|main airport|unemployment rate
place|france|japan|brazil|kenya|canada|norway|portugal|vietnam|chile|morocco|greece|turkey|poland|iceland|south korea|new zealand|argentina|austria|hungary|thailand|ireland|egypt|finland|nigeria|cuba|denmark
super|largest|smallest|oldest|newest|deepest|highest|longest|shortest|busiest|most expensive|cheapest|safest|most dangerous|second largest|northernmost|southernmost
geo|city|lake|river|island|university|airport|museum|national park|harbour|stadium|castle|train station
person|isaac newton|marie curie|abraham lincoln|ludwig van beethoven|wolfgang mozart|virginia woolf|jane austen|nelson mandela|ada lovelace|alan turing|napoleon bonaparte|galileo galilei|frida kahlo|charles darwin|queen victoria|nikola tesla|thomas edison
made|wrote|directed|composed|painted|designed|produced|translated|published|edited|invented|discovered
work|hamlet|the magic flute|the mona lisa|jaws|the eiffel tower|moonlight sonata|frankenstein|the starry night|don quixote|the telephone|penicillin|the printing press|war and peace|guernica
unit|miles|kilometres|feet|metres|inches|centimetres|pounds|kilograms|ounces|grams|gallons|litres|cups|acres|celsius|fahrenheit|knots|hectares|horsepower
fmt|json|xml|csv|yaml|a pdf|a word document|html|markdown|a png|a jpeg|an mp3|a wav file|a bullet list|a table|plain text|an excel sheet|an svg
num|2|3|4|5|6|7|8|9|10|12|15|20|25|30|40|45|50|60|75|100|120|150|200|250|365|500|1000|2500|three|four|five|seven|ten|twelve
code|reverse a string|sort a list|read a file|parse json|open a socket|remove duplicates|count words|start a thread|flatten a nested list|handle exceptions|write unit tests|format a date|merge two dictionaries|find the maximum|find the minimum|sort in ascending order|sort in descending order|encrypt a file|decrypt a file|send an http request|shuffle an array|append to a file|truncate a file
lang|python|java|rust|go|javascript|typescript|c++|ruby|swift|kotlin|php|haskell|perl|scala|julia
ver|1.18|1.21|3.8|3.9|3.11|3.12|8|11|17|21|2.7|5.0|14|version 2|version 3|4.1
tech|tcp|udp|http|https|ssh|sql|nosql|postgresql|mysql|redis|docker|kubernetes|git|svn|a process|a thread|a stack|a queue|a virus|a bacterium|a crocodile|an alligator|a comet|an asteroid|jam|marmalade|a lawyer|a notary|a bond|a share|ram|rom|a compiler|an interpreter
aspect|benefits|risks|advantages|disadvantages|causes|symptoms|effects|types|costs|uses|origins|side effects|main features|alternatives|strengths|weaknesses|legal requirements|drawbacks|stages
topic|coffee|green tea|solar energy|nuclear power|remote work|yoga|intermittent fasting|electric cars|meditation|vitamin d|cryptocurrency|inflation|insomnia|diabetes|recycling|homeschooling|credit cards|term life insurance|whole life insurance|swimming|running|strength training|sugar|salt|protein|iron|cheese|asthma|migraine|anaemia
quality|safe|dangerous|healthy|suitable|expensive|useful|harmful|allowed|forbidden|recommended|necessary|affordable
who|adults|children|toddlers|teenagers|pregnant women|older people|athletes|people with diabetes|people with asthma|beginners|vegetarians|students|veterans|nurses|tourists|foreigners|residents|families|employees|the self-employed|newborns
who2|for adults|for children|for students|for pensioners|for a family of four|for non-residents|for one person|for two people|for members|for non-members
freq|a day|a week|per month|each morning|every evening|before bed|after exercise|before exercise
drug|ibuprofen|aspirin|paracetamol|penicillin|antihistamines|melatonin|caffeine|insulin|cortisone|codeine|iron tablets|cough syrup|antibiotics|antacids
bound|maximum|minimum|usual|starting|lethal|average|recommended
city|paris|london|berlin|tokyo|madrid|rome|vienna|boston|chicago|denver|seattle|dallas|toronto|sydney|mumbai|cairo|lima|prague|zurich|munich|lyon|naples|austin|miami|osaka|porto
vehicle|train|bus|plane|ferry|car|bike|coach|tram|taxi
day|today|tomorrow|yesterday|on monday|on tuesday|on wednesday|on friday|on saturday|on sunday|this weekend|next weekend|next week|last week|tonight|this morning|in january|in july|on christmas day|on new year's eve|next month|last month
class|business class|economy|first class|non-stop|one-way|return|cheap|flexible|late-night|early-morning
nat|american|british|german|indian|chinese|canadian|mexican|nigerian|australian|japanese|french
word|good morning|thank you|goodbye|water|left|right|happy birthday|yes|no|bread|friend|help|love|sorry|cheers|blue|red
tongue|french|german|spanish|italian|dutch|polish|japanese|korean|arabic|swahili|hindi|greek|danish|latin|turkish
cook|boil|bake|fry|grill|steam|roast|microwave|smoke|defrost|marinate|soak
food|chicken|eggs|rice|salmon|potatoes|beef|tofu|pasta|lentils|butter|olive oil|honey|sugar|flour|buttermilk|spinach|garlic|broccoli|shrimp|turkey|oatmeal|grapes|chocolate|avocado|carrots|onions|peanuts|apples
role|chief executive|chairman|founder|spokesperson|treasurer|coach|vice president|president|secretary|head of sales|owner|lawyer
org|netflix|spotify|adobe|toyota|siemens|nestle|greenpeace|the red cross|the world bank|real madrid|ikea|amazon|airbnb|uber|the bbc|harvard|nasa|vodafone|lufthansa|barclays
account|account|subscription|family plan|premium plan|business account|payment method|booking|gift card|delivery address|email address|trial|invoice
form|the tax return|the visa application|the scholarship application|the insurance claim|the expense report|the appeal|the ballot|the grant proposal|the census form|the housing benefit form
goal|get a passport|open a bank account|rent a car|adopt a child|register a birth|get married|buy a house|sell a house|start a business|close a business|vote|renew a passport|import a car|export a car|enrol at a university|apply for asylum|get a fishing licence|donate blood|learn to swim|see a dentist|recycle batteries|call the plumber|water the plants|pay the rent|return the library books|submit the report|feed the cat|buy milk
party|tenant|landlord|buyer|seller|doctor|patient|teacher|student|employer|employee|lender|borrower|parent|child|insurer|customer|publisher|author|company|shareholder|agent|contractor|driver|cyclist
animal|dogs|cats|rabbits|parrots|goldfish|hamsters|horses|chickens|guinea pigs|puppies|kittens|tortoises
team|arsenal|chelsea|juventus|barcelona|bayern|the lakers|the celtics|the yankees|brazil|argentina|england|scotland|ajax
cmp|bigger|smaller|warmer|colder|cheaper|more expensive|safer|older|more crowded|cleaner|farther north|farther south
tone|formal|friendly|angry|funny|short|long|polite|apologetic|professional|casual
doc|email|letter|text message|poem|speech|note|complaint|invitation|thank-you card|reminder
rel|boss|neighbour|teacher|landlord|mother|colleague|client|bank|doctor|insurance company|best friend
subj|a late delivery|the noise at night|a pay rise|the summer party|a broken window|the meeting on friday|world war one|world war two|the french revolution|the water cycle|photosynthesis|black holes|the roman empire|an overdue invoice|my resignation|the new schedule|a lost parcel
piece|sentences|paragraphs|words|bullet points|pages|lines
stuff|the numbers|these names|the files|the results|my contacts|the prices|the invoices|the dates
order|ascending|descending|alphabetical|reverse alphabetical|chronological|reverse chronological|random|increasing|decreasing
rel2|before|after|during|instead of|in case of|to prevent
event|an earthquake|a job interview|a car accident|surgery|a long flight|a marathon|a first date|a power cut|a wedding|a heart attack|moving house|an exam|a flood|a divorce
modal|must|may|should|cannot|must not|need not|want to|are paid to|refuse to
duty|wear a helmet|work at weekends|take overtime|use the canteen|enter the server room|sign the register|park on site|work from home|join the union|wear a badge
quant|all|some|none|most|half|a few|at least two|at most two|exactly three|many
items|rooms|seats|tickets|files|employees|answers|windows|batteries|courses|routes|samples
state|available|sold out|broken|insured|included|open|closed|valid|expired|refundable|non-refundable|free|locked
price|price|weight|availability|average price|lowest price|highest price|import tax|resale value|quality|market share
product|milk|petrol|diesel|gold|silver|natural gas|electricity|olive oil|a big mac|a used car|an iphone|rent|coffee beans|bread
alarm|an alarm|a timer|a reminder|two alarms|the coffee machine|the heating|a meeting
ampm|am|pm|o'clock in the morning|o'clock in the evening
whom|me|my wife|my husband|the team|my son|my boss|everyone|nobody|my neighbour|my customers
claim|the sun is a star|the earth is flat|bats are blind|vaccines cause autism|water boils at 100 degrees|gold is heavier than silver|silver is heavier than gold|dogs can see colours|dogs cannot see colours|sugar makes children hyperactive|the invoice is paid|the invoice is not paid|the flight was cancelled|the flight was not cancelled|the price will rise|the price will fall|i am leaving|i am staying|coffee stunts growth|the meeting is optional|the meeting is mandatory
"""

SLOT = re.compile(r"\{(\w+?)(2?)\}")


class Questions:
    """Random pairs of made-up questions.

    Arguments:
        seed: of all draws.
        part: ``train`` or ``held``: which frames it draws from; None for all.
    """

    def __init__(self, seed: int = 0, part: str | None = None) -> None:
        self.random = random.Random(seed)
        frames = lines(FRAMES)
        held = set(random.Random(5).sample(range(len(frames)), len(frames) // 6))
        self._frames = [
            frame for at, frame in enumerate(frames)
            if part is None or (at in held) == (part == "held")
        ]  # fmt: skip
        self._slots = {name: members for name, *members in lines(SLOTS)}

    def same(self) -> tuple[str, str]:
        """Two wordings of one question."""
        frame = self.random.choice(self._frames)
        one, other = self.random.sample(frame, 2)
        filled = self._filling(frame)
        return self._write(one, filled), self._write(other, filled)

    def different(self) -> tuple[str, str]:
        """Two questions that differ in one slot, or in which of two comes first."""
        frame = self.random.choice(self._frames)
        filled = self._filling(frame)
        one = self.random.choice(frame)
        other = one if self.random.random() < 0.5 else self.random.choice(frame)
        twins = [slot for slot in filled if f"{slot}2" in filled and slot in self._slots]
        changed = dict(filled)
        if twins and self.random.random() < 0.5:
            slot = self.random.choice(twins)
            changed[slot], changed[f"{slot}2"] = filled[f"{slot}2"], filled[slot]
        else:
            slot = self.random.choice(sorted(filled))
            taken = {filled[slot], filled.get(f"{slot}2"), filled.get(slot.removesuffix("2"))}
            members = [m for m in self._members(slot) if m not in taken]
            changed[slot] = self.random.choice(members)
        if frame[0].startswith("What is the difference"):  # between x and y, y and x: the same
            changed = {**filled, "tech": changed["tech"]} if changed["tech"] != filled["tech2"] else {
                **filled, "tech": self.random.choice(
                    [m for m in self._slots["tech"] if m not in filled.values()])}  # fmt: skip
            if changed == filled:
                changed["tech2"] = self.random.choice(
                    [m for m in self._slots["tech"] if m not in filled.values()]
                )
        return self._write(one, filled), self._write(other, changed)

    def fillings(self) -> list[str]:
        """All that slots are filled with."""
        return [member for members in self._slots.values() for member in members]

    def _members(self, slot: str) -> list[str]:
        return self._slots[slot] if slot in self._slots else self._slots[slot.removesuffix("2")]

    def _filling(self, frame: tuple[str, ...]) -> dict[str, str]:
        filled: dict[str, str] = {}
        names = {"".join(found) for found in SLOT.findall(" ".join(frame))}
        for name in sorted(names):
            members = [m for m in self._members(name) if m not in filled.values()]
            filled[name] = self.random.choice(members)
        return filled

    def _write(self, wording: str, filled: dict[str, str]) -> str:
        text = re.sub(r"\{(\w+)\}", lambda found: filled[found[1]], wording)
        return text[0].upper() + text[1:] if self.random.random() < 0.7 else text.lower()
