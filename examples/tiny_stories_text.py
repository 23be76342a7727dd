# SPDX-License-Identifier: Apache-2.0
"""The text that the tiny-stories sample model learns from: stories and short conversations, written by a small grammar.

Every sentence is made here, from templates and word lists: nothing is downloaded and nothing is quoted. A template
is a string in which ``[a|b|c]`` stands for one of its alternatives (they may nest), ``{FRAGMENT}`` for another
template and ``{slot}`` for a word that stays the same for the whole story. The slots are what keeps a story coherent:
the hero's name and pronouns, the animal friend and the belongings are drawn once. A word that matters little, such as
a colour, is said once only: so small a model learns to repeat the words that it sees repeated all the time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence

Message = dict[str, str]
words = str.split

GIRLS = words("Lily Mia Anna Rosie Ella Nora Lucy Emma Zoe Clara Ruby Molly")
BOYS = words("Tom Max Ben Leo Sam Jack Finn Oscar Theo Noah Henry Pip")
NAMES = GIRLS + BOYS
ANIMALS = words("cat dog rabbit fox mouse duck frog squirrel hedgehog lamb goat turtle kitten puppy pig hen owl bird")
YOUNG = ["lamb", "kitten", "puppy"]
HEROES = [*ANIMALS, "bear", "pony", "lion", "monkey", "elephant", "sheep", "cow", "horse"]
CLIMBERS = ["cat", "squirrel", "owl", "bird", "monkey"]
COLOURS = words("red blue green yellow orange purple pink white")
# Every belonging can be lost, found or shared; only some break, and only some are carried off by the wind.
BREAKABLE = words("kite boat doll drum basket umbrella puppet lantern train wagon")
FLYING = words("kite hat scarf balloon umbrella")
THINGS = sorted({*BREAKABLE, *FLYING, "ball", "book", "bell", "blanket"})
PLACES = [(f"to the {place}", f"by the {place}") for place in ("river", "pond", "lake")]
PLACES += [(f"to the {place}", f"in the {place}") for place in ("park", "garden", "meadow", "forest")]
PLACES += [("to the beach", "on the beach"), ("up the hill", "on the hill")]
SUBJECTS = [*NAMES, *HEROES, *THINGS]
HELPERS = words("mother father grandmother grandfather aunt uncle")
FOODS = words("apples berries cherries carrots pears plums nuts")
SKILLS = ["ride a bike", "swim", "climb a tree", "whistle", "dance", "juggle", "skip stones", "jump over a rope"]

FRAGMENTS = {
    "ONEDAY": "One [day|day|sunny day|sunny morning|bright morning|warm afternoon|windy day|cold morning]",
    "HOMED": "[in a small house|in a little village|in a small town|near the sea|near a big forest|by a river]",
    "WENT": "[went|walked|ran] {to}. [{SCENE} |]",
    "SCENE": "[The sun was shining|The birds were singing|The sky was blue|The air was fresh|It was quiet there].",
    "LIKES": """[{name}|{He}] [loved|liked] to [play outside|sing songs|explore|make new friends|run and jump
        |look at the clouds|help others|ask questions|count the stars|listen to stories].""",
    "WITH": "{He} [took|took|took|brought|carried] {his} [new|favourite|old] {colour} {thing} along.",
    "SAD": "{name} [began to cry|was very sad|did not know what to do].",
    "MEET": "[Just then|Soon|A moment later], a {size} {animal} came [by|along|out of the grass].",
    "THANKS": '"Thank you[ so much|, thank you|]!" said {name}[ with a big smile| happily|].',
    "SPOT": "[under a bush|behind a big stone|in the tall grass|next to an old tree|under some leaves]",
    "FRIENDS": "From that day on, {name} and the {animal} were [best|good|the best of] friends.",
    "HOME": """[In the evening|When the sun went down|At the end of the day], {name} went home
        [with a smile|with a happy heart|and slept well].""",
    "PLAYED": """[{name} and the {animal}|They] [played|danced|sang songs] until [the sun went down
        |it was time to go home].""",
    "LUNCH": "They sat down [together|under a tree|in the sun] and [ate|shared] some {food}.",
    "END": "[{FRIENDS}|{PLAYED}|{PLAYED} {FRIENDS}|{LUNCH} {FRIENDS}|{LUNCH} {HOME}]",
}

# An opening tells of a life before the day of the story, or begins on that day at once.
OPENINGS = [
    "[Once upon a time|Long ago], there [was|lived] a {trait} {kind} named {name}. {LIKES} {ONEDAY}, {name} {WENT}",
    "Once upon a time, {HOMED}, there lived a {trait} {kind} named {name}. {LIKES} {ONEDAY}, {he} {WENT}",
    "Once upon a time, a {trait} {kind} named {name} lived {HOMED}. {LIKES} {ONEDAY}, {he} {WENT}",
    "There [was once|once was|was] a {trait} {kind} named {name} who lived {HOMED}. [{LIKES} |]{ONEDAY}, {name} {WENT}",
    "{name} was a {trait} {kind}[ who lived {HOMED}|]. {LIKES} {ONEDAY}, {he} {WENT}",
    "[One day|{ONEDAY}], a {trait} {kind} named {name} {WENT} [{LIKES} |]",
    "[One day|{ONEDAY}], {name} {WENT} {name} was a {trait} {kind}. [{LIKES} |]",
    "{name} and {his} {pet} lived {HOMED}. {name} was a {trait} {kind}. {ONEDAY}, {he} {WENT}",
    "The {trait} {kind} {name} lived {HOMED}. {LIKES} {ONEDAY}, {he} {WENT}",
    "{name} was {at}. {He} was a {trait} {kind}. {LIKES}",
]

# What happens then. The first word says which belongings fit; with "nothing" the story is not about a belonging.
PLOT_TEXT = """
anything: {WITH} But [after a while|when it was time to go home|when {he} looked around], the {thing} was gone. {He}
looked {SPOT}, but it was not there. {SAD}

{MEET} "Why are you [so sad|crying]?" asked the {animal}. "I [have lost|cannot find] my {thing}," said {name}. "[Do not
worry|Do not be sad]," said the {animal}. "[I will help you|We will find it together]." They looked and looked. [At
last|Then] the {animal} found it {SPOT}.

{THANKS} {END}
---
nothing: [There|Soon], {he} heard a [small cry|soft voice]. A {size} {animal} was stuck [in the mud|in a bush|under a
fence]. "[Please help me|Help me, please]!" [said|cried] the {animal}. {name} pulled and pulled, but the {animal} was
still stuck.

[Then {name} had an idea|{name} thought for a moment]. {He} ran home and came back with {his} {helper} and a
[long|strong] rope. "One, two, three, pull!" they cried. They pulled together, and at last the {animal} was free.

"Thank you," said the {animal}. "You are very [kind|brave]." {LUNCH} {FRIENDS}
---
nothing: [Soon|After a while], dark clouds came and it began to rain. {name} was [cold and wet|wet and cold]. "[Where
can I go|Where can I hide]?" {he} [asked|thought]. Then {he} saw a {size} {animal} [under a big tree|in a small cave
|under a bridge]. "Come here," said the {animal}. "There is room for two."

They sat close together and [sang songs|told stories|told jokes] until the rain stopped. [Then|Soon] the sun came out,
and they saw a [big|bright|beautiful] rainbow. "[How beautiful|Look at that|What a lovely rainbow]!" said {name}.

{END}
---
breakable: {WITH} But {he} [fell over a stone|ran too fast and fell down|let it fall], and the {thing} broke. "Oh no!"
cried {name}. "My {thing} is broken!" {SAD}

{name} took the {thing} to {his} {helper}. "Can you [fix|mend] it?" {he} asked. "[We can fix it together|Let us fix it
together|Yes, if you help me]," was the answer. They used some [glue|string|tape] and a little paint. [Soon|The next
day], the {thing} was as good as new.

{THANKS} [From then on, {name} was very careful with the {thing}.|{He} played with the {thing} until bedtime.|{He}
never let the {thing} fall again.]
---
anything: {WITH} {friend} was there too. "[May|Can] I play with your {thing}?" asked {friend}. "No, it is mine!" said
{name}. {friend} [sat down under a tree|walked away] and was sad.

{name} played alone, but it was [no fun|not much fun]. {He} looked at {friend} and felt sorry. "I am sorry," said
{name}. "[We can share the {thing}|Let us play together|We can take turns]." {friend} smiled.

[{name} and {friend}|They] played with the {thing} all [day|afternoon]. {name} learned that sharing is [good|fun|better
than playing alone]. From that day on, {name} and {friend} were [best|good] friends.
---
nothing: [Suddenly|There], {he} heard a [strange|loud|funny] noise [behind a tree|behind a bush|in the tall grass].
{name} was [scared|afraid]. "Who is there?" {he} asked [in a small voice|softly]. {He} wanted to run home, but {he} was
brave and went a little closer.

Then a {size} {animal} came out. "I am sorry," said the {animal}. "I was only looking for some {food}." {name} [began
to laugh|laughed]. "I thought you were a [monster|giant|ghost]!" {he} said. They both laughed [for a long time|and
laughed].

{END}
---
nothing: {He} wanted to [make|bake] a cake for {his} {helper}. But there was no fruit [in the house|at home]. {SAD}

{MEET} "What are you looking for?" asked the {animal}. "I need some fruit for a cake," said {name}. "I know where to
find some," said the {animal}. "Follow me!" Soon they had a basket full of [apples|pears|plums|cherries|berries].

{THANKS} They went home together and made the best cake in the world. {FRIENDS}
---
nothing: [At noon|After a while], {he} sat down to eat some {food}. A {size} {animal} came [closer|by] and looked at
{him}. "I am so hungry," said the {animal}. {name} did not have much, but {he} gave half of it to the {animal}. "Thank
you," said the {animal}.

Later, {name} wanted to go home, but {he} could not find the way. {SAD} Then the {animal} came back. "You helped me,
and now I will help you," said the {animal}. It showed {name} the way home.

{THANKS} {FRIENDS}
---
nothing: {He} wanted to learn to {skill}. {He} tried once, but {he} could not do it. {He} tried again, but it was too
hard. "I will never learn it," said {name}. {SAD}

"[Do not give up|Try once more|Try again]," said {his} {helper}. "I will [help|show] you." Every day, {name} tried to
{skill}. [Day by day|Little by little], it became easier.

At last, {name} could {skill}! "Look at me!" {he} [cried|said|shouted]. Everyone was very proud of {him}. {name}
learned that [you should never give up|trying again helps].
---
nothing: [There|Soon], {he} saw a baby {parent}. The baby {parent} was [crying|all alone]. "[What is wrong|Why are you
sad]?" asked {name}. "I cannot find my mother," said the baby {parent}. "[I will help you|We will find her]," said
{name}.

They asked a {helper_animal}, but the {helper_animal} had not seen her. They walked [a long way|on and on]. Then {name}
heard a sound. The mother {parent} was sleeping {SPOT}!

The baby {parent} ran to its mother. "Thank you, {name}," said the mother {parent}. "You are very [kind|brave]." {HOME}
---
nothing: [There|On the way], {he} found a [small|tiny|round] brown seed. {name} took it home and put it into a pot.
Every [day|morning], {he} gave it some water. But nothing happened. {SAD}

"[You have to wait|Be patient]," said {his} {helper}. "[Good things take time|A seed needs time]." [One morning |After
a week], {name} saw a tiny green leaf. It grew and grew. Then a [big|beautiful] {colour} flower opened.

"Look!" said {name}. {He} showed the flower to {friend}. "It is the most beautiful flower in the world," said {friend}.
{name} was very [proud|happy].
---
flying: {WITH} Then a [strong|big] wind came and blew the {thing} into a tall tree. {name} jumped as high as {he}
could, but {he} could not reach it. {SAD}

[Just then|Soon], a {size} {climber} came by. "[I can help you|Let me help you]," said the {climber}. The {climber}
went up to the top of the tree and came back with it. {name} [clapped|was so happy].

{THANKS} {name} gave the {climber} some {food}. From that day on, {name} and the {climber} were good friends.
---
anything: [There|On the way], {he} found a {colour} {thing}. It was very [nice|pretty], but it was not {hers}. "Is this
your {thing}?" {name} asked a {size} {animal}. "No, it is not mine," said the {animal}.

Then {name} saw {friend}. {friend} was [crying|very sad]. "I have lost my {thing}," said {friend}. "Is it this one?"
asked {name}. "Yes, it is!" said {friend}. {name} gave the {thing} back.

"Thank you!" said {friend}. "You are very [kind|honest]." They [sat down and ate some {food}|played with the {thing}
all day]. From that day on, {name} and {friend} were good friends.
---
nothing: It was a special day, but nobody [was there|came to play]. "[Everyone has forgotten my birthday|Nobody
remembers my birthday]," said {name}. {SAD} Then a {size} {animal} came. "Come with me," said the {animal}.

{name} and the {animal} walked to {his} house. It was dark inside. Then {he} heard a loud "Surprise!" All of {his}
friends were there, and {his} {helper} had made [a big cake|a cake|a birthday cake].

"[This is the best day ever|This is my best birthday]!" said {name}. They ate the cake and [danced|sang songs| played
games] until bedtime.
"""
BELONGINGS = {"anything": THINGS, "breakable": BREAKABLE, "flying": FLYING, "nothing": []}
PLOTS = [(BELONGINGS[fit], plot) for fit, plot in (text.strip().split(":", 1) for text in PLOT_TEXT.split("---"))]


def expand(template: str, rng: random.Random) -> str:
    """Choose among ``[a|b]`` alternatives, innermost first, and put in fragments until none is left."""
    while "[" in template or re.search(r"\{[A-Z]{2,}\}", template):
        template = re.sub(r"\[([^\[\]]*)\]", lambda match: rng.choice(match[1].split("|")), template)
        template = re.sub(r"\{([A-Z]{2,})\}", lambda match: FRAGMENTS[match[1]], template)
    return template


def tidy(text: str) -> str:
    """Join the lines of each paragraph, and turn "a" into "an" before a vowel."""
    paragraphs = [re.sub(r" ([.,!?])", r"\1", " ".join(paragraph.split())) for paragraph in text.split("\n\n")]
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", "\n\n".join(paragraphs))


def cast(rng: random.Random, subjects: Sequence[str], things: list[str]) -> dict[str, str]:
    """Draw the words that stay fixed throughout one story, with the subjects among them."""

    def pick(options: Collection[str]) -> str:
        return next((subject for subject in subjects if subject in options), rng.choice(list(options)))

    name = pick(NAMES)
    kind = pick(HEROES)
    if kind not in subjects and rng.random() < 0.65:
        kind = "girl" if name in GIRLS else "boy"
    he, his, him, hers = ("she", "her", "her", "hers") if name in GIRLS else ("he", "his", "him", "his")
    animal, helper_animal, pet = rng.sample([animal for animal in ANIMALS if animal != kind], 3)
    to, at = rng.choice(PLACES)
    slots = {"name": name, "kind": kind, "he": he, "He": he.title(), "his": his, "him": him}
    slots |= {"hers": hers, "animal": animal, "helper_animal": helper_animal, "pet": pet, "to": to, "at": at}
    return slots | {
        "food": rng.choice(FOODS),
        "friend": rng.choice([friend for friend in NAMES if friend != name]),
        "parent": animal if animal not in YOUNG else rng.choice(["bear", "fox", "duck"]),
        "climber": rng.choice([climber for climber in CLIMBERS if climber != kind]),
        "thing": pick(things or THINGS),
        "colour": rng.choice(COLOURS),
        "helper": rng.choice(HELPERS),
        "skill": rng.choice(SKILLS),
        "trait": rng.choice(words("little young small kind brave clever cheerful curious")),
        "size": rng.choice(words("little small friendly grey brown")),
    }


def story(rng: random.Random, *subjects: str) -> str:
    """Write one story of four paragraphs, about the subjects (words of SUBJECTS) where some are given."""
    owned = {subject for subject in subjects if subject in THINGS}
    things, plot = rng.choice([plot for plot in PLOTS if owned <= set(plot[0])])
    template = expand(f"{rng.choice(OPENINGS)}\n\n{plot} [The end.|]", rng)
    return tidy(template.format_map(cast(rng, subjects, things)))


COLOUR_OF = {"the sky": "blue", "the sea": "blue", "the sun": "yellow", "grass": "green", "snow": "white"}
COLOUR_OF |= {"milk": "white", "coal": "black", "the night": "black", "chocolate": "brown", "blood": "red"}
COLOUR_OF |= {"a banana": "yellow", "a lemon": "yellow", "a strawberry": "red", "a cherry": "red", "a carrot": "orange"}
COLOUR_OF |= {"an orange": "orange", "a frog": "green", "a pig": "pink", "a crow": "black", "a swan": "white"}
COLOUR_OF |= {"a tomato": "red", "an elephant": "grey", "a bear": "brown", "a plum": "purple"}
SAYS = {"cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "pig": "oink", "horse": "neigh"}
SAYS |= {"owl": "hoo", "frog": "ribbit", "lion": "roar", "bee": "buzz", "hen": "cluck", "rooster": "cock-a-doodle-doo"}
SAYS |= {"bird": "tweet", "mouse": "squeak", "snake": "hiss", "wolf": "howl", "donkey": "hee-haw", "goat": "maa"}
NUMBERS = words("zero one two three four five six seven eight nine ten")
SYSTEMS = ["You are a helpful assistant.", "You are a friendly storyteller.", "Answer in short sentences.", "Be kind."]
WHO = "I am Tiny, a very small language model. I can tell you a story."
CAN = "I can tell you a story, name colours and animal sounds, and add small numbers."
UNKNOWN = "I do not know that. I am only a very small model."
TALK = [
    ("[Hello|Hi|Hey|Hello there|Hi there|Hi Tiny|Good morning|Good evening]!", "Hello! What can I do for you?"),
    ("[How are you|How are you doing|How are you today|How do you do]?", "I am fine, thank you!"),
    ("[Who are you|What are you|Are you a robot|Are you a human|Are you a model|What kind of model are you]?", WHO),
    ("[Tell me about yourself|Introduce yourself|Please introduce yourself].", WHO),
    ("[What is your name|What's your name|What are you called|Do you have a name]?", "My name is Tiny."),
    ("[Tell me your name|Please tell me your name|Say your name].", "My name is Tiny."),
    ("[Thank you|Thanks|Thanks a lot|Thank you very much|Thank you so much|Great, thanks]!", "You are welcome!"),
    ("[Goodbye|Bye|Bye bye|See you|See you later|Good night]!", "Goodbye! Come back soon."),
    ("[What can you do|What do you know|How can you help me|Can you help me|What can I ask you]?", CAN),
]
ONLY_SMALL = "I can only add numbers up to 5 + 5."
LARGE_SUM = """[What is|What's|How much is|] [[6|7|8|9|10|12|15|36|100][ + |+][1|3|5|6|7|8|9|20|34|100]
|[1|2|3|4|5][ + |+][6|7|8|9|10]]?"""
UNKNOWN_QUESTIONS = """
[What is|What's|How much is] [2|3|4|5|7|8|10] [-|*|/|minus|times] [1|2|3|4|6|9|20]?
[What is|Tell me|Do you know] the [capital|population|president|flag|history] of [France|Spain|China|India|Japan]?
How [big|old|far|heavy|hot|tall] is [the moon|the earth|the sun|a mountain|a car|London|Paris|a whale]?
Who [wrote|made|invented|painted|built] [the telephone|the bible|Hamlet|America|the car|the radio|the computer]?
[Why|How|When] do [birds|planes|people|stars|trees|computers|cars|fish] [fly|work|grow|sleep|move|exist]?
[Can you|Please] [write|explain|translate|draw|solve] [some code|this program|a letter|a poem|physics|an essay]?
How many [legs|eyes|teeth|friends|children] [does a cat have|does a dog have|do you have|does a spider have]?
Do you [like|love|want|know|hate] [cats|dogs|music|me|chocolate|football|London|the president]?
What is [the weather|the time|the date|the news|love|life|money|music|an atom|gravity|the meaning of life]?
"""


def questions() -> dict[str, list[tuple[str, str]]]:
    """Every kind of question that has one right answer, as templates of the question with that answer."""
    sounds = "[What does {0} say|What sound does {0} make|Which sound does {0} make|What noise does {0} make]?"
    colours = "[What colour is {0}|What color is {0}|Which colour is {0}|What is the colour of {0}]?"
    sums = "[What is {0} + {1}|What's {0} + {1}|What is {0}+{1}|How much is {0} + {1}|{0} + {1}|{0}+{1}|{0} + {1} =]?"
    spoken = "[What is|How much is|What's] {0} plus {1}?"
    pairs = [(a, b) for a in range(6) for b in range(6)]
    return {
        "talk": TALK,
        "colour": [(colours.format(item), f"{item.capitalize()} is {colour}.") for item, colour in COLOUR_OF.items()],
        "sound": [(sounds.format(f"[a|the] {who}"), tidy(f"A {who} says {sound}.")) for who, sound in SAYS.items()],
        "sum": [(sums.format(a, b), f"{a} + {b} = {a + b}.") for a, b in pairs]
        + [(spoken.format(NUMBERS[a], NUMBERS[b]), f"{a} + {b} = {a + b}.") for a, b in pairs],
        "unknown": [(LARGE_SUM, ONLY_SMALL), *((line, UNKNOWN) for line in UNKNOWN_QUESTIONS.strip().splitlines())],
    }


QUESTIONS = questions()
KIND_WEIGHTS = {"talk": 4, "colour": 4, "sound": 4, "sum": 5, "unknown": 2, "story": 10}


def story_request(rng: random.Random) -> tuple[str, str]:
    """Ask for a story, mostly about something."""
    template = "[Tell me|Can you tell me|Please tell me|Write|I want to hear] a [|short |little ]story"
    subject = rng.choice(rng.choice([NAMES, HEROES, THINGS]))
    if rng.random() < 0.15:
        return expand(f"[{template}|Tell me another story|A story, please].", rng), story(rng)
    if rng.random() < 0.2:
        name, kind = rng.choice(NAMES), rng.choice(HEROES)
        return tidy(expand(f"{template} about a {kind} [named|called] {name}.", rng)), story(rng, name, kind)
    article = "" if subject in NAMES else "[a|a|the] "
    return tidy(expand(f"{template} about {article}{subject}.", rng)), story(rng, subject)


def reworded(question: str, rng: random.Random) -> str:
    """Vary how a question is typed: people leave out capitals and the final mark."""
    question = question.lower() if rng.random() < 0.35 else question
    return question.rstrip("?!.") if rng.random() < 0.3 else question


def conversation(rng: random.Random) -> list[Message]:
    """Write a conversation of one to four questions, now and then under a system message."""
    messages = [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < 0.25 else []
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4])):
        kind = rng.choices(list(KIND_WEIGHTS), weights=list(KIND_WEIGHTS.values()))[0]
        if kind == "story":
            question, answer = story_request(rng)
        else:
            template, answer = rng.choice(QUESTIONS[kind])
            question = tidy(expand(template, rng))
        messages += [{"role": "user", "content": reworded(question, rng)}, {"role": "assistant", "content": answer}]
    return messages
