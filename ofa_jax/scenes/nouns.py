"""The nouns of the objects in scenes, each with a pictogram, and their English grammar.

The table is pruned by hand so that each noun names its pictogram exactly, and no other noun of the
table is also correct for it: no hypernyms beside their hyponyms ("bird" and "owl"), no mass nouns,
no names that are already a plural, no people, no flags, no signs. So it is certain whether a scene
shows an owl.
"""

import dataclasses
import functools
import re

# "name" or "name = its name in the pictogram database". The first 40 are the default: common,
# short, and easy to distinguish at 28 pixels.
_TABLE = """
dog; apple = red apple; car = automobile; sun; octopus; banana; house; frog; key; bicycle;
elephant; umbrella; strawberry; airplane; penguin; mushroom; guitar; rabbit; tent; bus;
butterfly; cactus; crab; balloon; candle; owl; carrot; turtle; sailboat; horse; hammer; tulip;
snail; camera; pineapple; rocket; bed; zebra; drum; snake;

cat; bell = bellhop bell; whale; giraffe; helicopter; train; tractor; alarm clock; anchor;
castle; cloud; book = closed book; chair; egg; fox; lemon; mouse; pear; pencil;
rose; scorpion; ship; shark; spider; tomato; violin; watch;
sheep = ewe; goose; cow; pig; duck; swan; parrot; peacock; flamingo; eagle; dove; rooster;
turkey; dodo; camel; kangaroo; koala; panda; gorilla; monkey; raccoon; skunk; sloth; otter;
beaver; badger; hedgehog; hippopotamus; rhinoceros; bison; goat; donkey; deer; llama; bat;
chipmunk; seal; dolphin; squid; jellyfish; lobster; crocodile; lizard; dragon; unicorn;
ladybug = lady beetle; ant; bee = honeybee; mosquito; cockroach; worm; sunflower; hibiscus;
lotus; hyacinth; palm tree; pine tree = evergreen tree; potted plant; maple leaf;
four-leaf clover = four leaf clover; ear of corn; snowman; rainbow; volcano; tornado;
crescent moon; spider web; ringed planet;

avocado; bagel; bell pepper; bone; burrito; chestnut; cookie; croissant; cucumber;
cupcake; doughnut; eggplant; hamburger; hot dog; ice cube;
kiwi = kiwi fruit; lollipop; mango; olive; onion; pancake stack = pancakes; peach;
potato; pretzel; spoon; taco; tamale; tangerine; teapot; waffle; baby bottle; beer mug;
wine glass; rice ball; slice of pizza = pizza; slice of watermelon = watermelon;
bunch of grapes = grapes; head of garlic = garlic; chocolate bar; dumpling; oyster; pea pod;
baguette = baguette bread;

accordion; banjo; baseball; basketball; boomerang; boxing glove; chess pawn; clapper board;
curling stone; fishing pole; flute; flying disc; die = game die; harp; puzzle piece; kite;
microphone; parachute; roller skate; saxophone; skateboard; sled; slot machine; soccer ball;
trophy; trumpet; volleyball; yo-yo; ice skate; diving mask;

abacus; amphora; axe; barber pole; basket; bathtub; battery; bomb; bookmark; broom; bucket;
light bulb; calendar; coffin; coin; compass; crayon; crystal ball; dagger; diya lamp;
electric plug; envelope; fire extinguisher; firecracker; flashlight; floppy disk;
folding hand fan; gear; gem = gem stone; gift = wrapped gift; headstone;
hourglass = hourglass done; joystick; kitchen knife; ladder; laptop = laptop computer;
magic wand; magnet; microscope; mirror; mobile phone; money bag; mouse trap; newspaper;
paintbrush; paperclip; paper lantern = red paper lantern; pen; pill; piñata; plunger; printer;
radio; razor; receipt; safety pin; satellite dish = satellite antenna; screwdriver; scroll;
shield; shopping cart; shovel; stethoscope; syringe; teddy bear; telescope; test tube;
thermometer; toilet; toolbox; toothbrush; television; wastebasket; wind chime; wrench;
magnifying glass = magnifying glass tilted left; saw = carpentry saw; clipboard; sponge;

ambulance; auto rickshaw; canoe; church; crutch; factory; ferris wheel; fire engine;
flying saucer; fountain; fuel pump; motorcycle; mosque; moai; pickup truck;
roller coaster; satellite; speedboat; stadium; wheelchair = manual wheelchair; ring buoy;
kick scooter; traffic light = vertical traffic light; Statue of Liberty; aerial tramway
"""

_IRREGULAR_PLURALS = {
    "cactus": "cacti",
    "deer": "deer",
    "die": "dice",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "mouse": "mice",
    "sheep": "sheep",
    "squid": "squid",
    "bison": "bison",
    "jellyfish": "jellyfish",
    "mango": "mangoes",
    "mosquito": "mosquitoes",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "tornado": "tornadoes",
    "volcano": "volcanoes",
    "moai": "moai",
}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass(frozen=True)
class Noun:
    """A noun with a pictogram.

    Attributes:
      name: the singular in lower case, as in texts and object labels.
      code: the Unicode code point in lower-case hex: the pictogram's file name in both styles.
    """

    name: str
    code: str

    @property
    def plural(self) -> str:
        """The plural, e.g. "slices of pizza"."""
        return plural(self.name)

    @property
    def with_article(self) -> str:
        """The name with its indefinite article, e.g. "an owl"."""
        return with_article(self.name)

    def counted(self, count: int) -> str:
        """Returns the noun with a count, e.g. "an owl", "two owls" or "no owls"."""
        if count == 1:
            return self.with_article
        return f"{number_word(count)} {self.plural}"


def number_word(count: int) -> str:
    """Returns a number as a word, e.g. "three"; as digits from ten on."""
    return _NUMBERS[count] if 0 <= count < len(_NUMBERS) else str(count)


def with_article(phrase: str) -> str:
    """Adds the indefinite article by sound: "an owl", "a unicorn", "an hourglass", "an x-ray"."""
    word = phrase.lower()
    vowel = word[0] in "aeiou" or word.startswith(("hour", "honest", "x-ray"))
    consonant = word.startswith(("uni", "use", "uke", "eu", "one", "once"))
    return f"{'an' if vowel and not consonant else 'a'} {phrase}"


def plural(name: str) -> str:
    """Returns the plural of a noun phrase, e.g. "mouse traps" or "slices of pizza".

    The plural is formed of the last word, before " of " if there is one.
    """
    head, of, rest = name.partition(" of ")
    words = head.split(" ")
    words[-1] = _plural_word(words[-1])
    return " ".join(words) + of + rest


def _plural_word(word: str) -> str:
    """Returns the plural of a single word."""
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


@functools.cache
def all_nouns() -> tuple[Noun, ...]:
    """Returns all nouns in the order of the table, the easiest to distinguish first."""
    from pymdownx import twemoji_db

    codes = {entry["name"]: entry["unicode"] for entry in twemoji_db.emoji.values()}
    nouns = []
    for entry in " ".join(_TABLE.split()).strip("; ").split(";"):
        name, _, database_name = (part.strip() for part in entry.partition("="))
        database_name = database_name or name
        if database_name not in codes:
            raise ValueError(
                f"The noun table names the pictogram {database_name!r}, which the installed "
                "pymdown-extensions does not know: install the version of requirements.txt."
            )
        nouns.append(Noun(name.lower(), codes[database_name]))
    return tuple(nouns)


def first_nouns(count: int) -> tuple[Noun, ...]:
    """Returns the first `count` nouns of the table."""
    nouns = all_nouns()
    if not 4 <= count <= len(nouns):
        raise ValueError(
            f"There are {len(nouns)} nouns to choose from and a scene needs at least 4 of them: "
            f"set --nouns to between 4 and {len(nouns)}, not {count}."
        )
    return nouns[:count]
