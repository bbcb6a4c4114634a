"""The facts of the demo world, as readable tables: one fact a line, columns split by a bar."""


def table(text):
    """Split a block of lines into rows of stripped columns."""
    return [tuple(part.strip() for part in line.split("|")) for line in text.strip().splitlines()]


# country | capital | continent | language
COUNTRIES = table("""
France | Paris | Europe | French
Italy | Rome | Europe | Italian
Spain | Madrid | Europe | Spanish
Portugal | Lisbon | Europe | Portuguese
Germany | Berlin | Europe | German
Austria | Vienna | Europe | German
Poland | Warsaw | Europe | Polish
Greece | Athens | Europe | Greek
Norway | Oslo | Europe | Norwegian
Sweden | Stockholm | Europe | Swedish
Finland | Helsinki | Europe | Finnish
Denmark | Copenhagen | Europe | Danish
Ireland | Dublin | Europe | English
England | London | Europe | English
Hungary | Budapest | Europe | Hungarian
Romania | Bucharest | Europe | Romanian
Bulgaria | Sofia | Europe | Bulgarian
Russia | Moscow | Europe | Russian
Iceland | Reykjavik | Europe | Icelandic
Croatia | Zagreb | Europe | Croatian
Japan | Tokyo | Asia | Japanese
China | Beijing | Asia | Chinese
India | New Delhi | Asia | Hindi
Thailand | Bangkok | Asia | Thai
Vietnam | Hanoi | Asia | Vietnamese
Turkey | Ankara | Asia | Turkish
Iran | Tehran | Asia | Persian
Iraq | Baghdad | Asia | Arabic
Nepal | Kathmandu | Asia | Nepali
Mongolia | Ulaanbaatar | Asia | Mongolian
Egypt | Cairo | Africa | Arabic
Kenya | Nairobi | Africa | Swahili
Morocco | Rabat | Africa | Arabic
Ghana | Accra | Africa | English
Senegal | Dakar | Africa | French
Ethiopia | Addis Ababa | Africa | Amharic
Tunisia | Tunis | Africa | Arabic
Angola | Luanda | Africa | Portuguese
Canada | Ottawa | North America | English
Mexico | Mexico City | North America | Spanish
Cuba | Havana | North America | Spanish
Jamaica | Kingston | North America | English
Brazil | Brasilia | South America | Portuguese
Argentina | Buenos Aires | South America | Spanish
Chile | Santiago | South America | Spanish
Peru | Lima | South America | Spanish
Colombia | Bogota | South America | Spanish
Uruguay | Montevideo | South America | Spanish
Australia | Canberra | Oceania | English
New Zealand | Wellington | Oceania | English
""")

# thing | verb | colour
COLOURS = table("""
the sky | is | blue
grass | is | green
snow | is | white
the sun | is | yellow
blood | is | red
coal | is | black
milk | is | white
a banana | is | yellow
a lemon | is | yellow
a carrot | is | orange
a pumpkin | is | orange
a tomato | is | red
a strawberry | is | red
a cherry | is | red
a cucumber | is | green
a frog | is | green
a pig | is | pink
a flamingo | is | pink
a crow | is | black
a swan | is | white
a polar bear | is | white
an elephant | is | grey
chocolate | is | brown
a lime | is | green
an orange | is | orange
a plum | is | purple
a fire engine | is | red
a leaf | is | green
the sea | is | blue
the night sky | is | black
a mouse | is | grey
salt | is | white
mud | is | brown
gold | is | yellow
lavender | is | purple
a cloud | is | white
""")

# word | opposite (used in both directions)
OPPOSITES = table("""
hot | cold
big | small
tall | short
fast | slow
happy | sad
up | down
left | right
in | out
open | closed
day | night
light | dark
old | young
good | bad
hard | soft
wet | dry
full | empty
high | low
loud | quiet
clean | dirty
early | late
rich | poor
strong | weak
thick | thin
wide | narrow
near | far
black | white
first | last
yes | no
push | pull
begin | end
win | lose
buy | sell
give | take
sweet | sour
brave | afraid
love | hate
north | south
east | west
above | below
before | after
always | never
true | false
deep | shallow
sharp | blunt
""")

# animal | sound | young | number of legs | home | class
ANIMALS = table("""
dog | woof | puppy | 4 | kennel | mammal
cat | meow | kitten | 4 | basket | mammal
cow | moo | calf | 4 | barn | mammal
sheep | baa | lamb | 4 | field | mammal
horse | neigh | foal | 4 | stable | mammal
pig | oink | piglet | 4 | sty | mammal
duck | quack | duckling | 2 | pond | bird
hen | cluck | chick | 2 | coop | bird
goose | honk | gosling | 2 | pond | bird
owl | hoot | owlet | 2 | tree | bird
lion | roar | cub | 4 | savannah | mammal
frog | croak | tadpole | 4 | pond | amphibian
bee | buzz | larva | 6 | hive | insect
snake | hiss | snakelet | 0 | burrow | reptile
mouse | squeak | pup | 4 | hole | mammal
wolf | howl | pup | 4 | den | mammal
bear | growl | cub | 4 | cave | mammal
goat | bleat | kid | 4 | farm | mammal
crow | caw | chick | 2 | nest | bird
donkey | hee-haw | foal | 4 | stable | mammal
""")

# singular | plural
PLURALS = table("""
cat | cats
dog | dogs
mouse | mice
child | children
foot | feet
tooth | teeth
goose | geese
man | men
woman | women
person | people
sheep | sheep
fish | fish
leaf | leaves
knife | knives
wolf | wolves
box | boxes
bus | buses
fox | foxes
baby | babies
city | cities
berry | berries
lady | ladies
tomato | tomatoes
potato | potatoes
glass | glasses
dish | dishes
house | houses
book | books
tree | trees
shelf | shelves
ox | oxen
cherry | cherries
""")

# present | past
PASTS = table("""
go | went
see | saw
eat | ate
run | ran
come | came
give | gave
take | took
make | made
say | said
tell | told
find | found
know | knew
think | thought
bring | brought
buy | bought
catch | caught
teach | taught
sing | sang
swim | swam
drink | drank
begin | began
write | wrote
ride | rode
drive | drove
fly | flew
grow | grew
sleep | slept
keep | kept
feel | felt
leave | left
lose | lost
hear | heard
hold | held
sit | sat
stand | stood
win | won
walk | walked
play | played
jump | jumped
look | looked
""")

# job | what the person does
JOBS = table("""
baker | bakes bread
teacher | teaches children
doctor | helps sick people
farmer | grows food
pilot | flies planes
painter | paints pictures
cook | cooks meals
singer | sings songs
writer | writes books
fisherman | catches fish
gardener | looks after plants
sailor | sails ships
tailor | makes clothes
driver | drives a car
builder | builds houses
vet | helps sick animals
dentist | looks after teeth
firefighter | puts out fires
""")

# tool | what it is for
TOOLS = table("""
knife | cut things
spoon | eat soup
pen | write
broom | sweep the floor
umbrella | stay dry in the rain
key | open a door
lamp | make light
clock | tell the time
hammer | hit nails
needle | sew clothes
towel | dry our hands
soap | wash our hands
bed | sleep
chair | sit
oven | bake bread
boat | cross the water
brush | paint
bucket | carry water
rope | tie things
map | find the way
""")

# shape | number of sides
SHAPES = table("""
triangle | 3
square | 4
rectangle | 4
pentagon | 5
hexagon | 6
octagon | 8
circle | 0
""")

# what | how many | statement
COUNTS = table("""
days are there in a week | 7 | There are 7 days in a week.
months are there in a year | 12 | There are 12 months in a year.
seasons are there in a year | 4 | There are 4 seasons in a year.
hours are there in a day | 24 | There are 24 hours in a day.
minutes are there in an hour | 60 | There are 60 minutes in an hour.
seconds are there in a minute | 60 | There are 60 seconds in a minute.
fingers are on one hand | 5 | There are 5 fingers on one hand.
wheels does a car have | 4 | A car has 4 wheels.
wheels does a bicycle have | 2 | A bicycle has 2 wheels.
eyes do you see on a face | 2 | There are 2 eyes on a face.
legs does a spider have | 8 | A spider has 8 legs.
legs does an ant have | 6 | An ant has 6 legs.
arms does an octopus have | 8 | An octopus has 8 arms.
letters are in the alphabet | 26 | There are 26 letters in the alphabet.
colours are in the rainbow | 7 | There are 7 colours in the rainbow.
""")

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September "
          "October November December").split()
SEASONS = "spring summer autumn winter".split()

# category | article | members
CATEGORIES = {
    "fruit": "apple banana pear cherry plum peach lemon orange grape mango".split(),
    "vegetable": "carrot potato onion cabbage pea bean leek turnip spinach beetroot".split(),
    "animal": "dog cat cow horse lion bear fox rabbit goat elephant".split(),
    "colour": "red blue green yellow black white brown pink purple orange".split(),
    "bird": "owl duck goose swan crow eagle parrot robin hen penguin".split(),
    "tool": "hammer saw drill spade rake wrench chisel axe file pliers".split(),
    "drink": "water milk tea juice coffee lemonade cocoa".split(),
    "toy": "ball kite doll puzzle yo-yo balloon drum".split(),
    "flower": "rose tulip daisy lily sunflower violet poppy".split(),
    "instrument": "piano violin flute guitar trumpet cello harp".split(),
    "sport": "football tennis hockey rugby cricket swimming golf".split(),
    "vehicle": "car bus train bicycle truck tram van".split(),
}
CATEGORY_PLURALS = {"fruit": "fruits", "bird": "birds", "sport": "sports"}

# animals from the smallest to the largest
SIZES = "ant bee mouse frog rabbit cat dog goat pig horse elephant whale".split()

GIRLS = ("Mia Anna Lily Zoe Emma Nora Ella Ruby Lucy Sara Maya Ivy Rosa Clara Alice Nina Julia "
         "Hanna Eva Leah Tara Vera Molly Grace Daisy Lena Kira Amy Jane Olga").split()
BOYS = ("Tom Ben Max Sam Leo Jack Finn Noah Oscar Theo Hugo Adam Luke Omar Paul Ravi Karl Peter "
        "Milo Felix Toby Erik Simon David Henry Jonas Ali Ned Rolf Ivan").split()
PETS = "Rex Bella Coco Milo Luna Buddy Daisy Rocky Pip Fluffy Biscuit Pepper".split()
TOWNS = [row[1] for row in COUNTRIES[:30]]
OBJECTS = ("ball kite book hat boat drum doll lamp bell cup box key bag coat scarf ring "
           "clock pen spoon basket bike puzzle balloon umbrella").split()


NAME_PARTS = ("ba be bo da de do fa fi ga go ha he ka ki la le lo ma mi na ne no pa ra ri ro sa "
              "so ta te to va vi za zo").split()


def invented_name(rng):
    """A name put together from syllables."""
    return "".join(rng.choice(NAME_PARTS) for _ in range(rng.randint(2, 3))).capitalize()


def article(word):
    """The word with its indefinite article."""
    return ("an " if word[0].lower() in "aeiou" else "a ") + word


def capital_first(text):
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
