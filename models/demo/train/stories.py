"""Short stories in simple words, made by a small grammar.

A story has a hero, a friend, a place and a thing; one of the plots below strings them together.
Every sentence has several wordings. Pronouns and names follow the characters.
"""

from dataclasses import dataclass
import zlib

from facts import BOYS, GIRLS, article, capital_first, invented_name

CREATURES = ("fox rabbit bear mouse cat dog duck frog owl hedgehog squirrel lamb pony turtle "
             "kitten puppy bird penguin elephant lion pig goat dragon robot").split()
TRAITS = "little kind brave shy clever curious happy funny gentle quiet young cheerful".split()
HOMES = ["in a small house near the forest", "in a village by the sea", "at the edge of a green wood",
         "on a farm on a hill", "in a little town by a river", "next to a big blue lake",
         "in a cosy home under an old oak tree", "in a valley full of flowers",
         "at the end of a long road", "near a quiet pond"]
PLACES = ["the forest", "the garden", "the park", "the beach", "the river", "the old bridge",
          "the meadow", "the hill", "the lake", "the market"]
THINGS = ["red ball", "blue kite", "little bell", "golden key", "wooden boat", "green hat",
          "silver ring", "soft scarf", "yellow balloon", "small drum", "shiny stone",
          "warm blanket", "toy train", "old book", "paper star", "tin whistle"]
FOODS = ["apple pie", "carrot soup", "honey cake", "fresh bread", "berry jam", "warm milk",
         "cheese", "pancakes", "nut cookies", "tomato soup"]
WEATHERS = ["sunny", "warm", "windy", "cold", "bright", "cloudy"]
GAMES = ["hide and seek", "catch", "a racing game", "a guessing game", "tag"]


@dataclass
class Character:
    """Someone in a story; kind is empty for a child."""

    name: str
    kind: str
    he: str

    @property
    def him(self):
        return "him" if self.he == "he" else "her"

    @property
    def his(self):
        return "his" if self.he == "he" else "her"

    @property
    def noun(self):
        return self.kind or ("boy" if self.he == "he" else "girl")


def make_character(rng, taken=(), kind=None, name=None):
    """Draw a character whose name and kind are not taken yet."""
    he = rng.choice(["he", "she"])
    if name:
        he = "he" if name in BOYS else "she"
    kinds = [k for k in CREATURES if k not in [c.kind for c in taken]]
    names = [n for n in (BOYS if he == "he" else GIRLS) if n not in [c.name for c in taken]]
    if kind is None:
        kind = rng.choice(kinds) if rng.random() < 0.6 else ""
    if name is None:
        name = invented_name(rng) if rng.random() < 0.08 else rng.choice(names)
    return Character(name, kind, he)


class Scene:
    """The characters and things of one story, and helpers to word sentences."""

    def __init__(self, rng, kind=None, name=None, thing=None, place=None):
        self.rng = rng
        self.hero = make_character(rng, (), kind, name)
        self.friend = make_character(rng, (self.hero,))
        self.thing = thing or rng.choice(THINGS)
        self.place = place or rng.choice(PLACES)
        self.food = rng.choice(FOODS)
        self.weather = rng.choice(WEATHERS)
        self.trait = rng.choice(TRAITS)

    def say(self, *wordings):
        """Choose a wording and fill in the characters and things."""
        h, f = self.hero, self.friend
        text = self.rng.choice(wordings).format(
            H=h.name, he=h.he, him=h.him, his=h.his, He=capital_first(h.he),
            His=capital_first(h.his), F=f.name, fhe=f.he, fhim=f.him, fhis=f.his,
            FHe=capital_first(f.he), FHis=capital_first(f.his), a_friend=article(f.noun),
            friend=f.noun, hero=h.noun, thing=self.thing, a_thing=article(self.thing),
            place=self.place, food=self.food, weather=self.weather,
            game=self.rng.choice(GAMES))
        return capital_first(text)


def opening(s):
    """Introduce the hero."""
    h, rng = s.hero, s.rng
    who = article(f"{s.trait} {h.noun}")
    first = rng.choice([
        f"Once upon a time, there was {who} named {h.name}.",
        f"Once upon a time, there was {who} called {h.name}.",
        f"Once upon a time, {who} named {h.name} lived {rng.choice(HOMES)}.",
        f"There was once {who} named {h.name}.",
        f"Once there was {who} called {h.name}.",
        f"{h.name} was {who} who lived {rng.choice(HOMES)}.",
        f"A long time ago, there was {who} named {h.name}.",
        f"One day, {who} named {h.name} came to live {rng.choice(HOMES)}."])
    lines = [first]
    if "live" not in first and rng.random() < 0.7:
        lines.append(f"{capital_first(h.he)} lived {rng.choice(HOMES)}.")
    if rng.random() < 0.75:
        lines.append(s.say("{H} loved to play {game}.", "{H} liked {food} more than anything.",
                           "Every day, {he} went to {place} to play.",
                           "{He} had {a_thing} that {he} loved very much.",
                           "{He} was always ready to help others.",
                           "{He} liked to sing and to look at the sky."))
    return lines


def lost_thing(s):
    """The hero loses something; a friend helps to find it."""
    say = s.say
    lines = [say("One {weather} day, {H} took {his} {thing} to {place}.",
                 "One {weather} morning, {H} went to {place} with {his} {thing}."),
             say("{He} played for a long time, and then {he} could not find the {thing}.",
                 "{He} put the {thing} down to rest, and when {he} looked again, it was gone.",
                 "On the way home, {he} saw that the {thing} was gone."),
             say("{H} was very sad.", "{H} began to cry.", "\"Oh no!\" said {H}. \"Where is my {thing}?\""),
             say("Then {a_friend} named {F} came by.", "Just then, {he} met {a_friend} named {F}."),
             say("\"Why are you sad?\" asked {F}.", "\"What is wrong?\" asked {F}."),
             say("\"I have lost my {thing},\" said {H}.", "\"I cannot find my {thing},\" said {H}."),
             say("\"Do not worry,\" said {F}. \"I will help you look for it.\"",
                 "\"Let us look for it together,\" said {F}."),
             say("They looked behind the trees and under the stones.",
                 "They looked here and there, and they asked everyone they met.",
                 "They looked in the grass and behind every bush.")]
    lines += [say("At last, {F} saw something behind a big stone. It was the {thing}!",
                  "Soon {H} saw the {thing} under a bush.",
                  "At last, they found the {thing} in the tall grass."),
              say("{H} was so happy that {he} hugged {F}.", "\"Thank you, {F}!\" said {H}.",
                  "\"You are a good friend,\" said {H}."),
              say("From that day on, {H} and {F} were best friends.",
                  "After that, {H} took good care of {his} {thing}.",
                  "They went home together and ate {food}.")]
    return lines


def sharing(s):
    """The hero learns to share food."""
    say = s.say
    return [say("One day, {H} made some {food}.", "One {weather} day, {his} mother gave {H} some {food}."),
            say("{He} sat down near {place} to eat.", "{He} took it all to {place}."),
            say("Soon {a_friend} named {F} came along.", "There {he} saw {a_friend} named {F}."),
            say("{F} looked very hungry.", "{F} had not eaten all day."),
            say("\"May I have some, please?\" asked {F}.", "\"That smells so good,\" said {F}."),
            say("At first, {H} did not want to share.", "{H} thought about it for a moment."),
            say("Then {he} saw how hungry {F} was.", "But {he} had a kind heart."),
            say("\"Here you are,\" said {H}. \"There is enough for both of us.\"",
                "\"Of course,\" said {H}. \"Let us eat together.\""),
            say("They sat in the sun and ate the {food}.", "They ate and laughed together."),
            say("\"Thank you,\" said {F}. \"You are very kind.\"", "{F} smiled and thanked {H}."),
            say("{H} felt warm inside. {He} had learned that sharing is good.",
                "{H} was happy, because food tastes better with a friend.",
                "That day, {H} learned that it is good to share.")]


def storm(s):
    """A storm comes and the two shelter together."""
    say = s.say
    return [say("One day, {H} went for a walk to {place}.", "One afternoon, {H} was alone near {place}."),
            say("Suddenly, the sky became dark and it began to rain.",
                "Suddenly, there was a loud noise in the sky. A storm was coming!"),
            say("The wind was strong, and {H} was afraid.", "{H} was cold and wet, and {he} felt afraid."),
            say("\"What shall I do?\" {he} thought.", "\"I want to go home,\" said {H}."),
            say("Then {he} heard a voice. \"Come in here!\" it said.",
                "Then {he} saw a light in a small house."),
            say("It was {F}, {a_friend} who lived there.", "In the door stood {a_friend} named {F}."),
            say("{F} gave {H} a warm blanket and some {food}.",
                "{F} made a fire and gave {him} some {food}."),
            say("They told each other stories until the rain stopped.",
                "They played {game} until the storm was over."),
            say("Then the sun came out, and there was a rainbow in the sky.",
                "When the sky was blue again, they looked out and saw a rainbow."),
            say("\"Thank you for your help,\" said {H}.", "\"You saved me,\" said {H}."),
            say("{H} went home and told {his} mother about {his} new friend.",
                "From then on, {H} visited {F} every week.",
                "And so the storm gave {H} a new friend.")]


def help_friend(s):
    """The hero finds someone in trouble and helps."""
    say = s.say
    return [say("One {weather} morning, {H} was walking to {place}.",
                "One day, {H} was on {his} way to {place}."),
            say("{He} heard someone call for help.", "{He} heard a small voice. \"Help! Help!\""),
            say("It was {a_friend} named {F}.", "There was {a_friend} named {F} behind a tree."),
            say("{F} had hurt {fhis} foot and could not walk.", "{F} was stuck in the mud.",
                "{F} had fallen into a hole and could not get out."),
            say("\"I will help you,\" said {H}.", "\"Do not be afraid,\" said {H}. \"I am here.\""),
            say("{H} was not very strong, but {he} had a good idea.",
                "{H} thought hard, and then {he} had an idea."),
            say("{He} found a long rope and gave one end to {F}.",
                "{He} found a long stick and gave one end to {F}."),
            say("{He} pulled and pulled.", "\"One, two, three!\" said {H}, and {he} pulled."),
            say("At last, {F} was safe.", "Soon {F} was free."),
            say("\"You are so brave,\" said {F}.", "\"Thank you! You saved me,\" said {F}."),
            say("{F} gave {H} {a_thing} to say thank you.", "Then {H} walked home with {F}."),
            say("{H} was proud and happy.", "That night, {H} slept very well.",
                "They became good friends, and they met near {place} every day.")]


def learning(s):
    """The hero wants to learn something and does not give up."""
    say, rng = s.say, s.rng
    skill, doing = rng.choice([("swim", "swimming"), ("sing", "singing"), ("dance", "dancing"),
                               ("read", "reading"), ("paint", "painting"), ("climb", "climbing")])
    return [say(f"More than anything, {{H}} wanted to learn to {skill}.",
                f"{{H}} had one big wish. {{He}} wanted to {skill}."),
            say(f"But {doing} was hard, and {{H}} was afraid to fail.",
                f"{{He}} tried to {skill} on Monday, but it did not go well."),
            say("\"I will never learn it,\" said {H}.", "\"This is too hard for me,\" {he} said."),
            say("{His} friend {F} heard {him}. {F} was a wise {friend}.",
                "One day, {he} met a wise {friend} named {F}."),
            say("\"You must try again and again,\" said {F}. \"Then it will be easy.\"",
                "\"Do not give up,\" said {F}. \"I will show you how.\""),
            say("So every day, they went to {place} together.",
                "Every morning, they met near {place}."),
            say("The first day was hard. The second day was better.",
                f"Day after day, {{H}} was {doing} a little better."),
            say(f"At the end of the week, {{H}} could {skill}!", f"And then, one day, {{he}} could {skill}!"),
            say("\"Look at me!\" said {H}.", "\"I did it!\" {he} said with a big smile."),
            say("{F} was very proud of {him}.", "\"I knew that you could do it,\" said {F}."),
            say("{H} had learned that you should never give up.",
                "From that day on, {H} was not afraid to try new things.")]


def surprise(s):
    """A birthday surprise."""
    say = s.say
    return [say("It was the birthday of {H}.", "Today was a special day. It was the birthday of {H}."),
            say("But nobody said a word about it.", "But when {he} woke up, the house was empty."),
            say("\"Has everyone forgotten me?\" {he} thought.", "{H} felt sad and alone."),
            say("{He} went to {place} and sat down.", "{He} took a long walk to {place}."),
            say("There {he} met {his} friend {F}, {a_friend}.", "Then {F} the {friend} came to {him}."),
            say("\"Come with me,\" said {F}. \"I want to show you something.\"",
                "\"Please close your eyes and follow me,\" said {F}."),
            say("They walked back to the house and {F} opened the door.",
                "{F} took {him} home and opened the door."),
            say("\"Surprise!\" shouted all the friends of {H}.", "\"Happy birthday!\" everyone shouted."),
            say("There was {food} on the table, and there were balloons everywhere.",
                "There were flowers on the table and a big plate of {food}."),
            say("{F} gave {him} {a_thing}.", "The best gift was {a_thing} from {F}."),
            say("{H} laughed and danced until the evening.", "They all played {game} and sang songs."),
            say("It was the best birthday ever.", "\"This is the best day of my life,\" said {H}.")]


def treasure(s):
    """The hero finds something and gives it back to its owner."""
    say = s.say
    return [say("One {weather} day, {H} found {a_thing} near {place}.",
                "One day, when {H} was playing near {place}, {he} found {a_thing}."),
            say("\"What a beautiful thing!\" said {H}.", "{He} had never seen such a fine {thing}."),
            say("{He} wanted to keep it.", "{He} picked it up and took it home."),
            say("But then {he} thought, \"Someone must be looking for it.\"",
                "But at night {he} could not sleep. The {thing} was not {his} own."),
            say("So {H} went from door to door and asked, \"Is this yours?\"",
                "So the next day, {he} asked everyone in the village."),
            say("The baker said no. The farmer said no.", "\"No,\" said the baker. \"It is not mine.\""),
            say("Then {he} came to the house of {F}, {a_friend}.", "At last, {he} met {a_friend} named {F}."),
            say("\"That is my {thing}!\" said {F}. \"I have looked for it everywhere.\"",
                "\"Oh, my {thing}!\" said {F}. \"It was a gift from my grandmother.\""),
            say("{H} gave it back with a smile.", "{H} was happy to give it back."),
            say("\"You are honest,\" said {F}. \"Please come in and eat some {food} with me.\"",
                "\"Thank you,\" said {F}. \"Let us be friends.\""),
            say("And {H} knew that a friend is better than {a_thing}.",
                "From that day on, {H} and {F} played together every day.",
                "{H} went home with a light heart.")]


def garden(s):
    """The hero plants a seed and waits."""
    say, rng = s.say, s.rng
    plant = rng.choice(["sunflower", "apple tree", "pumpkin", "rose", "carrot", "tomato plant"])
    return [say("One day in spring, {F} gave {H} a small seed.",
                "In spring, {H} found a tiny seed near {place}."),
            say("{H} put the seed into the ground and gave it water.",
                "{He} made a little hole, put the seed in, and covered it with soil."),
            say("The next day, {he} looked, but there was nothing.",
                "{He} waited and waited, but nothing happened."),
            say("\"Why does it not grow?\" {he} asked {F}.", "\"It will never grow,\" {he} said to {F}."),
            say("{F} was an old friend, and {fhe} knew a lot about plants.",
                "{F} smiled, because {fhe} knew a lot about gardens."),
            say("\"You must wait,\" said {F}. \"Good things take time.\"",
                "\"Give it water and sun, and wait,\" said {F}."),
            say("So {H} gave it water every day.", "Every morning, {H} brought water and sang a song."),
            say("After a week, there was a tiny green leaf.", "One morning, something green came out of the ground."),
            say("It grew and grew.", "The plant grew bigger every day."),
            say(f"In summer, there was a beautiful {plant} in the garden.",
                f"At the end of summer, {{H}} had a big {plant}."),
            say("\"You were right,\" {he} said to {F}.", "Everyone came to look at it."),
            say("{H} was proud, and {he} gave a new seed to every friend.",
                "{H} had learned to wait.")]


def race(s):
    """A race in which kindness counts more than winning."""
    say = s.say
    return [say("One day, there was a big race near {place}.", "Every year, there was a race near {place}."),
            say("{H} wanted to win.", "{H} had trained for many weeks."),
            say("{F}, {a_friend}, wanted to win too.", "{F} was {a_friend} who could run very fast."),
            say("\"Ready, steady, go!\" shouted the owl.", "The bell rang, and they all began to run."),
            say("{H} ran as fast as {he} could.", "{H} was fast, but {F} was faster."),
            say("Then {F} fell over a stone and could not get up.",
                "Suddenly, {F} fell down and cried."),
            say("{H} could win now, but {he} stopped.", "{H} stopped and ran back."),
            say("\"Are you hurt?\" {he} asked.", "\"Take my hand,\" said {H}."),
            say("{H} helped {F} to stand up, and they walked on together.",
                "Together they went on, step by step."),
            say("They were the last to finish, but everyone cheered.",
                "They came in last, but nobody laughed."),
            say("\"You did not win the race, but you won a friend,\" said the owl.",
                "\"Thank you,\" said {F}. \"You are the real winner.\""),
            say("{H} went home with a happy heart.", "That evening, they ate {food} together.")]


def night(s):
    """The hero is afraid of the dark."""
    say = s.say
    return [say("{H} was afraid of the dark.", "Every night, {H} was afraid when the light went out."),
            say("One night, {he} heard a strange sound outside.",
                "One night, something made a sound near the window."),
            say("\"Who is there?\" {he} asked in a small voice.", "{H} hid under the blanket."),
            say("\"It is only me,\" said a friendly voice.", "Then a friendly voice said, \"Hello!\""),
            say("It was {F}, {a_friend}.", "Outside stood {F}, {a_friend} from {place}."),
            say("\"Come out and look at the stars,\" said {F}.",
                "\"The night is beautiful,\" said {F}. \"Let me show you.\""),
            say("They went to {place} and looked up.", "They sat on the grass and looked at the sky."),
            say("The moon was big and round, and there were a thousand stars.",
                "The stars were shining like little lamps."),
            say("\"It is not so dark,\" said {H}.", "\"How beautiful!\" said {H}."),
            say("{F} told {him} the names of the stars.", "They counted the stars until {he} was tired."),
            say("From that night on, {H} was not afraid of the dark.",
                "Then {H} went to bed and had a lovely dream.")]


def new_home(s):
    """Someone new comes and feels alone."""
    say = s.say
    return [say("One day, {a_friend} named {F} moved into the house next door.",
                "One day, {a_friend} named {F} came to live nearby."),
            say("{F} did not know anyone and was very shy.", "{F} sat alone and looked sad."),
            say("{H} saw {fhim} and went over.", "{H} wanted to make {fhim} smile."),
            say("\"Hello, my name is {H},\" {he} said.", "\"Hi! I am {H},\" {he} said. \"What is your name?\""),
            say("\"I am {F},\" said the {friend} in a quiet voice.", "\"My name is {F},\" said the {friend}."),
            say("\"Would you like to play {game}?\" asked {H}.", "\"Do you want to see {place}?\" asked {H}."),
            say("{F} smiled. \"Yes, please!\"", "\"I would love to,\" said {F}."),
            say("{H} showed {fhim} {place} and all the best places to play.",
                "They ran to {place} and played all day."),
            say("When they were hungry, they ate {food}.", "Later, {H} gave {fhim} {a_thing}."),
            say("\"I was so alone,\" said {F}. \"Now I have a friend.\"",
                "\"I like my new home,\" said {F}."),
            say("And from that day on, they were never alone.",
                "They were friends for the rest of their lives.")]


PLOTS = [lost_thing, sharing, storm, help_friend, learning, surprise, treasure, garden, race, night,
         new_home]
CLOSINGS = ["The end.", "And they all lived happily ever after.", "It was a good day."]


def story(rng, **wish):
    """One story; wish may fix the hero's kind or name, the thing or the place."""
    scene = Scene(rng, **wish)
    plots = [lost_thing, treasure] if "thing" in wish else PLOTS
    lines = opening(scene) + rng.choice(plots)(scene)
    if rng.random() < 0.4:
        lines.append(rng.choice(CLOSINGS))
    if rng.random() < 0.5:
        return " ".join(lines)
    cut = rng.randint(2, len(lines) - 3)
    return " ".join(lines[:cut]) + "\n\n" + " ".join(lines[cut:])


def held_out_opening(text):
    """True for story openings (the first words up to the name) that training never shows."""
    return zlib.crc32(" ".join(text.split()[:9]).encode()) % 40 == 3


def training_story(rng, **wish):
    """A story whose opening is not held out."""
    while True:
        text = story(rng, **wish)
        if not held_out_opening(text):
            return text
