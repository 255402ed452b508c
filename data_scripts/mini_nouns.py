# ruff: noqa: E501  (tables of words)
"""Nouns for captions: from ImageNet classes and the photo sources' hints, specific to coarse."""

from __future__ import annotations

# First the indices of ImageNet classes, as inclusive ranges, then the coarse nouns they get, the nearest first.
_RANGES = """
2-4 shark,fish|5-6 ray,fish|0-1 fish|389-397 fish|7-8 chicken,bird|22 eagle,bird|24 owl,bird|86 quail,bird|87-90 parrot,bird
95-96 bird|97-98 duck,bird|99 goose,bird|100 swan,bird|9-21 bird|23 bird|80-94 bird|127-128 stork,bird|129-130 bird
131-133 heron,bird|145 penguin,bird|134-146 bird|25-29 salamander,animal|30-32 frog|33-37 turtle|38-48 lizard|49-50 crocodile
51 dinosaur|52-68 snake|69 fossil|70 spider|71 scorpion|72-77 spider|78-79 insect|101 elephant|102-106 animal|107 jellyfish
108-109 coral|110-111 worm|112 shell|113 snail|114-116 slug|117 shell|118-121 crab|122-124 lobster|125 crab|126 insect
147-149 whale|150 seal|151-268 dog|269-272 wolf|273-275 dog|276 animal|277-280 fox|281-285 cat|286-287 wild cat,cat
288-290 leopard,big cat|291 lion|292 tiger|293 cheetah,big cat|294-297 bear|298-299 animal|300-307 beetle,insect|308 fly,insect
309 bee,insect|310-318 insect|319-320 dragonfly,insect|321-326 butterfly,insect|327-329 sea animal|330-332 rabbit
333 hamster,animal|334 animal|335 squirrel|336-338 animal|339 horse|340 zebra|341-343 pig|344 animal|345-347 cow|348-349 sheep
350 goat|351-353 antelope,deer|354 camel|355 llama|356-364 animal|365-384 monkey|385-386 elephant|387 red panda|388 panda,bear
407 car|436 car|468 taxi,car|475 car|479 wheel,car|511 car|581 car|609 car|627 car|656 van,car|661 car|734 car|751 car|817 car
573 car|575 car|555 truck|569 truck|675 truck|717 truck|864 truck|867 truck|757 truck|803 truck|654 bus|779 bus|874 bus
466 train|547 train|565 train|705 train|820 train|829 tram,train|472 boat|484 boat|510 ship,boat|554 boat|576 boat|625 boat
628 ship,boat|724 ship,boat|780 ship,boat|814 boat|871 boat|914 boat|403 ship,boat|833 ship|913 ship|408 vehicle|444 bicycle
671 bicycle,bike|870 bicycle|880 bicycle|665 motorbike|670 scooter,motorbike|404 airplane|895 airplane|908 airplane|405 airship
417 balloon|812 airplane|701 parachute|847 tank|866 tractor|595 tractor|856 tractor|561 tractor|450 sled|537 sled|802 sled
985 flower|986 flower|984 flower,field|989 fruit|990 nut|988 nut|987 vegetable|998 vegetable|948 apple,fruit|949-957 fruit
936-947 vegetable|991-997 mushroom|923-926 food|927 dessert|928-929 dessert|930-932 bread|933-935 food|959-965 food
966 wine,drink|967 coffee,drink|968-969 drink|970 mountain,landscape|972 rock,landscape|974 landscape|975 lake,landscape
976-978 sea,landscape|979 mountain,landscape|980 mountain,landscape|973 sea|981-983 person|399-400 dress,person
411 clothes,person|433 person|445 person|452 person|459 person|501 clothes,person|568 clothes,person|578 dress,person
601 dress,person|610 clothes,person|614 dress,person|617 clothes,person|638-639 person|652 clothes,person|655 dress,person
689 dress,person|697 clothes,person|735 clothes,person|775 dress,person|834 clothes,person|841 clothes,person|842 person
869 clothes,person|887 clothes,person|474 clothes,person|608 clothes,person|667 person|490 person|460 sea|465 clothes,person
461 clothes,person|824 clothes,person|515 hat|808 hat|439 hat|793 person|796 person|903 hair,person|415 shop|454 shop|467 shop
509 shop|582 shop|788 shop|860 shop|865 shop|424 shop|762 restaurant|425 building|437 tower,building|442 tower,building
449 building|483 building|497 building|498 building|500 building|538 building|580 building|624 room|660 house,building
663 building|668 building|698 building|727 building|743 building|832 tower,building|853 house,building|858 house,building
873 building|900 tower|915 building|634 building|682 tower|863 statue|649 stone|708 statue|821 bridge|839 bridge|888 bridge
718 bridge|562 fountain|489 fence|716 fence|912 fence|825 wall|429 ball|430 ball|522 ball|574 ball|722 ball|768 ball|805 ball
852 ball|890 ball|402 guitar|546 guitar|420 guitar|486 violin|889 violin|579 piano|881 piano|432 instrument|401 instrument
513 trumpet|566 horn|558 instrument|593 instrument|594 instrument|642 instrument|683 instrument|687 instrument|776 instrument
699 instrument|875 trumpet|541 drum|822 drum|577 drum|440 bottle|720 bottle|737 bottle|898 bottle|907 bottle|901 bottle
504 cup|550 machine|441 glass|572 glass|505 pot|521 pot|544 pot|738 pot|849 pot|469 pot|567 pan|909 pan|725 pitcher
659 bowl|809 bowl|868 tray|423 chair|559 chair|765 chair|857 chair|703 bench|831 sofa|453 furniture|493-495 furniture
526 desk,table|532 table|736 table|564 bed|516 bed|520 bed|431 bed|721 pillow|750 blanket|434 towel|894 furniture
518 helmet|560 helmet|715 helmet|414 bag|636 bag|728 bag|748 bag|797 bag|514 boot,shoe|502 shoe|630 shoe|770 shoe|774 shoe
409 clock|530 clock|531 watch|604 clock|826 clock|892 clock|413 gun|763 gun|764 gun|471 cannon|508 keyboard|878 keyboard
527 computer|620 computer|590 computer|664 screen|782 screen|851 television|487 phone|528 phone|707 phone|605 phone
732 camera|759 camera|482 radio|481 cassette|754 radio|848 radio|919 sign|920 light|619 lamp|846 lamp|470 candle
883 vase|850 toy|607 pumpkin|879 umbrella|672 tent|476 carousel|819 stage|854 curtain|794 curtain|835 clock|412 bin
427 barrel|756 barrel|478 box|492 box|519 box|571 gas pump|491 saw|921 book|917 book|681 book|916 page|958 hay,field
517 crane|535 wheel|640 metal|836-837 glasses|679 jewelry|552 feathers|643 mask|570 mask|645 person|602 person|842 person
"""

# Scenes, materials and places, and small things that the map finds by the person holding them: uncertain masks.
SCENES = {
    "bakery", "bookshop", "butcher shop", "confectionery", "grocery store", "shoe shop", "tobacco shop", "toyshop", "barbershop",
    "restaurant", "cinema", "library", "stage", "alp", "cliff", "coral reef", "lakeside", "promontory", "sandbar", "seashore",
    "valley", "patio", "prison", "home theater", "maze", "vault", "chainlink fence", "worm fence", "picket fence", "stone wall",
    "window screen", "velvet", "wool", "bubble", "hay", "dock", "pier", "breakwater", "greenhouse", "lumbermill", "web site",
    "menu", "crossword puzzle", "comic book", "theater curtain", "shower curtain", "window shade", "sliding door", "altar",
    "dam", "honeycomb", "cliff dwelling", "tile roof", "thatch", "apiary", "steel arch bridge", "suspension bridge", "viaduct",
    "spider web", "rapeseed", "dining table", "desk", "entertainment center", "prayer rug", "jigsaw puzzle", "brass",
    "puck", "paddle", "racket", "barbell", "dumbbell", "horizontal bar", "parallel bars", "balance beam", "basketball",
    "volleyball", "baseball", "rugby ball", "ping-pong ball", "croquet ball", "swing", "seat belt", "snorkel", "ski", "hammer",
    "flagpole", "park bench", "pole", "drumstick", "microphone", "fountain pen", "scoreboard", "knee pad", "stretcher",
}  # fmt: skip

_CALTECH = {  # hint: nouns, ImageNet classes that stand in for it
    "hedgehog": (["hedgehog", "animal"], [334, 102]),
    "llama": (["llama", "animal"], [355]),
    "kangaroo": (["kangaroo", "animal"], [104]),
    "chandelier": (["chandelier", "lamp"], []),
    "rhino": (["rhino", "animal"], [344, 346, 343]),
    "joshua tree": (["joshua tree", "tree"], []),
    "ibis": (["ibis", "bird"], [*range(127, 147)]),
    "flamingo head": (["flamingo", "bird"], [130]),
    "flamingo": (["flamingo", "bird"], [130]),
    "emu": (["emu", "bird"], [9]),
    "bonsai": (["bonsai", "tree"], [738]),
    "wheelchair": (["wheelchair", "chair"], []),
    "pizza": (["pizza", "food"], [963]),
    "okapi": (["okapi", "animal"], [340, 351, 353]),
    "ketch": (["sailboat", "boat"], [780, 914, 871, 484]),
    "helicopter": (["helicopter"], [404, 895]),
    "wild cat": (["wild cat", "cat"], [*range(281, 289)]),
    "water lilly": (["water lily", "flower"], []),
    "sunflower": (["sunflower", "flower"], [985]),
    "starfish": (["starfish", "sea animal"], [327]),
    "sea horse": (["sea horse", "fish"], []),
    "pigeon": (["pigeon", "bird"], [*range(8, 24), *range(80, 101), *range(127, 147)]),
    "hawksbill": (["turtle", "animal"], [33, 34, 35, 36, 37]),
    "gerenuk": (["gazelle", "antelope", "deer"], [351, 352, 353]),
    "ferry": (["ferry", "ship", "boat"], [628, 510, 554, 914]),
    "elephant": (["elephant", "animal"], [101, 385, 386]),
    "crocodile head": (["crocodile", "animal"], [49, 50]),
    "crocodile": (["crocodile", "animal"], [49, 50]),
    "cougar face": (["cougar", "wild cat", "cat"], [286]),
    "beaver": (["beaver", "animal"], [337, 336]),
    "strawberry": (["strawberry", "fruit"], [949]),
    "scorpion": (["scorpion"], [71]),
    "dalmatian": (["dalmatian", "dog"], [251]),
    "schooner": (["schooner", "ship", "boat"], [780, 914]),
    "panda": (["panda", "bear"], [388]),
    "lotus": (["lotus", "flower"], []),
    "crab": (["crab"], [118, 119, 120, 121, 125]),
    "saxophone": (["saxophone", "instrument"], [776]),
    "crayfish": (["crayfish", "lobster"], [124, 122, 123]),
    "lobster": (["lobster"], [122, 123, 124]),
    "dragonfly": (["dragonfly", "insect"], [319, 320]),
    "ant": (["ant", "insect"], [310]),
    "tick": (["tick", "insect"], [78]),
    "butterfly": (["butterfly", "insect"], [*range(321, 327)]),
    "airplanes": (["airplane"], [404, 895, 908]),
}
CLOTHES = [399, 400, 411, 474, 501, 568, 578, 608, 610, 614, 617, 638, 652, 655, 689, 735, 775, 824, 834, 841, 869, 887]
_GROUPS = {  # plain nouns: ImageNet classes
    "car": [407, 436, 468, 511, 609, 627, 656, 661, 717, 734, 751, 817, 581, 479],
    "cat": [*range(281, 288)],
    "train": [466, 547, 565, 705, 820, 829],
    "bus": [654, 779, 874],
    "person": [*CLOTHES, 981, 982],
    "dog": [*range(151, 269), 273, 274, 275],
    "elephant": [101, 385, 386],
    "giraffe": [340, 351, 352, 353, 9],
    "horse": [339, 603, 340],
    "guitar": [402, 546, 420],
    "house": [],
}
_FRUIT, _VEGETABLES, _PACKS = [*range(948, 958)], [*range(936, 948)], [478, 692, 737, 898, 720]
_GROCERY = {
    "apple": [948],
    "melon": [954, 940, 941, 939, 943],
    "pepper": [945],
    "banana": [954],
    "orange": [950],
    "lemon": [951],
}
_GROCERY |= {
    "mushroom": [947, 992, 997],
    "cucumber": [943, 939],
    "zucchini": [939, 943],
    "pineapple": [953],
    "pomegranate": [957],
}
_GROCERY |= {"cabbage": [936], "satsumas": [950], "lime": [951, 948], "mango": [948, 952], "kiwi": [952, 956]}
_PLURALS = {"satsumas": "satsuma", "carrots": "carrot"}


class Nouns:
    """The names of ImageNet's 1000 classes (in order) and the nouns derived from them."""

    def __init__(self, names: list[str]) -> None:
        self.names = [name.lower().replace("_", " ") for name in names]
        self.by_name: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            self.by_name.setdefault(name, []).append(index)
        self.by_name |= {"crane": [134, 517], "cardigan": [264, 474]}  # a bird and a machine, a dog and a jacket
        self.coarse: dict[int, list[str]] = {}
        for entry in _RANGES.replace("\n", "|").strip("|").split("|"):
            span, _, words = entry.partition(" ")
            first, _, last = span.partition("-")
            for index in range(int(first), int(last or first) + 1):
                self.coarse.setdefault(index, words.split(","))

    def of_class(self, index: int) -> list[str]:
        """Return one to three nouns of a class, specific to coarse."""
        name = {"ice bear": "polar bear", "sorrel": "horse", "hip": "rose hip", "fly": "fly", "ear": "corn"}.get(
            self.names[index], self.names[index]
        )
        coarse = self.coarse.get(index, [])
        return list(dict.fromkeys([name, *coarse]))[:3]

    def siblings(self, indices: list[int]) -> list[int]:
        """Return the classes and all that share their coarsest noun, because confusing two breeds does no harm."""
        last = {self.coarse[i][-1] for i in indices if i in self.coarse}
        return sorted({*indices, *(i for i, words in self.coarse.items() if words[-1] in last)})

    def read(self, source: str, hint: str) -> tuple[list[str] | None, list[int]]:
        """Return nouns (None: the detected class's) and candidate classes of a photo from its source and hint."""
        if source in ("bsds",):
            return [], []
        if source in ("houses", "stunning", "selfexsr"):
            return _scene(source, hint), []
        if source == "ccp":
            return ["person", "clothes"], _GROUPS["person"]
        if source == "voc_bernie":
            found = [part.strip().lstrip("0123456789 ") for part in hint.split(",")]
            singular = {"cars": "car", "persons": "person", "buss": "bus", "cats": "cat", "trains": "train"}
            found = [singular.get(noun, noun) for noun in found]
            found.sort(key=lambda noun: noun == "person")  # the sort is stable
            return [found[0]], _GROUPS[found[0]]
        if source == "pacs_photo":
            return [hint], _GROUPS[hint]
        if source == "caltech101":
            return _CALTECH.get(hint, ([], []))
        if source == "grocery":
            return _grocery(hint)
        return None, self._classes(hint)

    def _classes(self, hint: str) -> list[int]:
        for name in (
            hint,
            hint.removesuffix(" dog"),
            hint.removesuffix(" fish"),
            hint.removesuffix(" dog") + " spaniel",
        ):
            if name in self.by_name:
                return self.by_name[name]
        return []


def _scene(source: str, hint: str) -> list[str]:
    if source == "houses":
        return ["house"] if hint == "house exterior" else [hint, "room"]
    if "city" in hint:
        return ["city", "building"]
    words = {
        "falls": "waterfall",
        "lake": "lake",
        "mount": "mountain",
        "mountains": "mountain",
        "bridge": "bridge",
        "cliffs": "cliff",
    }
    words |= {
        "railway": "train",
        "lago": "lake",
        "valley": "mountain",
        "surfing": "sea",
        "canyon": "canyon",
        "erg": "desert",
    }
    words |= {
        "vlei": "desert",
        "lighthouse": "lighthouse",
        "loch": "lake",
        "arch": "rock",
        "canal": "canal",
        "beachy": "cliff",
    }
    found = [words[word] for word in hint.split() if word in words]
    return [*found[:1], "landscape"]


def _grocery(hint: str) -> tuple[list[str], list[int]]:
    group, *rest = hint.split()
    if group == "packages":
        kinds = ("juice", "sour milk", "oat milk", "soy milk", "sour cream", "milk", "oatghurt", "soyghurt", "yoghurt")
        kind = next(k for k in kinds if " ".join(rest).startswith(k))
        kind = {"oatghurt": "yoghurt", "soyghurt": "yoghurt"}.get(kind, kind)
        return list(dict.fromkeys([kind, kind.split()[-1], "carton"])), _PACKS
    noun = {"red grapefruit": "grapefruit", "red beet": "beet", "passion fruit": "passion fruit"}.get(
        " ".join(rest), rest[0]
    )
    noun = {"brown": "mushroom"}.get(noun, _PLURALS.get(noun, noun))
    specific = " ".join(rest[1:]) if rest[0] == noun and len(rest) > 1 else noun
    coarse = "fruit" if group == "fruit" else "vegetable"
    known = _GROCERY.get(rest[0], _GROCERY.get(noun, _FRUIT if coarse == "fruit" else _VEGETABLES))
    return list(dict.fromkeys([specific, noun, coarse])), known
