"""The words of orcinus-tiny: what fills the slots of its exercises and stories, and what its tokeniser merges."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Ada Alan Alba Alice Amir Ana Anders Anna Anton Aria Arthur Astrid Ben Bianca Boris Bruno Carla Carlos Carmen
    Cem Chloe Clara Claudia Dana Daniel David Diego Dora Edgar Elena Eli Elif Ella Emil Emma Erik Esther Eva
    Felix Finn Flora Frank Freya Gina Greta Hana Hanna Harold Hassan Helen Henry Hugo Ida Igor Ines Ingrid Irene
    Isaac Ivan Ivy Jack Jakob James Jana Jonas Julia Kai Karim Karl Kate Kenji Lara Laura Lea Lena Leo Liam Lily
    Linda Lisa Louis Lucy Lukas Luna Maja Marco Maria Mark Marta Martin Max Maya Mei Mila Milan Mina Mira Moritz
    Nadia Nils Nina Noah Nora Olaf Olga Oliver Omar Oscar Otto Paul Pavel Petra Pia Priya Rafael Ravi Rita
    Robert Rosa Ruby Sam Samir Sara Simon Sofia Stella Sven Tara Theo Thomas Tim Tina Tom Uma Vera Victor Viola
    Walter Willa Yara Yuki Yusuf Zoe
    """
)

CITIES = _words(
    """
    Accra Amsterdam Ankara Antwerp Athens Atlanta Baku Bangkok Barcelona Basel Beirut Belgrade Bergen Berlin
    Bern Bogota Bonn Bordeaux Boston Bremen Brussels Bucharest Budapest Cairo Calgary Cardiff Chicago Cologne
    Copenhagen Cordoba Dakar Dallas Delhi Denver Detroit Dresden Dublin Edinburgh Florence Frankfurt Gdansk
    Geneva Genoa Glasgow Granada Graz Hamburg Hanoi Havana Helsinki Houston Istanbul Jakarta Kiel Kyoto Lagos
    Leeds Leipzig Lima Lisbon Liverpool London Lyon Madrid Malmo Manila Melbourne Miami Milan Montreal Moscow
    Munich Nairobi Naples Oslo Ottawa Oxford Palermo Paris Perth Porto Prague Quito Riga Rome Rotterdam Salzburg
    Santiago Seattle Seoul Seville Sofia Stockholm Sydney Tallinn Tokyo Toronto Tunis Turin Utrecht Valencia
    Venice Vienna Vilnius Warsaw York Zagreb Zurich
    """
)

ITEMS = _words(
    """
    apple bag ball basket battery bell belt bicycle blanket book boot bottle bowl box bread brush bucket button
    cable cake camera candle cap card carpet chain chair clock coat comb cup curtain cushion desk diary doll
    door drum envelope eraser fan flag flute fork frame glass globe glove guitar hammer hat helmet jacket jar
    kettle key keyboard kite knife ladder lamp lantern lemon lock map mask mattress melon mirror monitor mouse
    mug nail necklace needle notebook oven pan pencil phone piano pillow pin plate pot printer puzzle radio
    ribbon ring rope ruler saddle saw scarf screw shelf shirt shoe shovel sock sofa spoon stamp stove suitcase
    sweater table tent ticket toaster torch towel toy tray trumpet umbrella vase violin wallet watch wheel
    whistle window
    """
)

ANIMALS = _words(
    """
    badger bat bear beaver bee bird bull camel cat cow crab crow deer dog dolphin donkey dove duck finch fish
    fox frog goat goose hamster hare hawk hedgehog horse kitten lamb lion lizard lynx mole monkey moose mouse
    newt panda parrot penguin pig pony puppy rabbit raven seal sheep snail spider squirrel swan tiger toad
    turtle walrus whale wolf zebra
    """
)

ADJECTIVES = _words(
    """
    small brave quiet clever gentle kind curious hungry sleepy cheerful patient shy modest lonely busy careful
    funny friendly polite wise young bold proud strong tiny lazy grumpy lucky calm playful
    """
)
COLOURS = _words("red blue green yellow white black brown golden silver purple grey pink")
MATERIALS = _words("wooden paper stone glass brass copper woollen leather plastic cotton")
FEELINGS = _words("happy proud surprised calm excited tired thankful glad relieved hopeful")
JOBS = _words(
    """
    baker farmer teacher sailor painter doctor gardener singer writer nurse pilot cook tailor fisher carpenter
    driver dancer judge miner printer
    """
)
FOODS = _words(
    """
    bread soup cheese rice pasta salad honey milk tea coffee cake pie berries carrots potatoes nuts cookies
    pancakes apples pears plums cherries
    """
)

MONTHS = _words("January February March April May June July August September October November December")
WEEKDAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

# Words that no exercise uses: with them, ordinary English costs the tokeniser fewer tokens.
COMMON = _words(
    """
    about above across act action add after again against age ago agree air all allow almost alone along already
    also always am among amount and animal another answer any appear area argue arm around arrive art as ask at
    away baby back bad bank base be beautiful became because become bed been before began begin behind being
    believe below best better between big bit blood blue board boat body both bottom bought bring brother
    brought build built business but buy by call came can cannot capital car care carry case catch cause cell
    center certain chance change chart check child children choose church circle city class clean clear climb
    close cloud cold college colour come common compare complete computer condition consider contain continue
    control cook cool copy corn corner correct cost could count country course cover create cross crowd cry
    current cut dance dark data day dead deal dear death decide deep degree describe design develop did differ
    difference different difficult direct discuss do doctor does dollar done down draw dream dress drink drive
    drop dry during each ear early earth ease east eat edge education effect eight either electric else end
    enemy energy engine enough enter equal even evening event ever every exact example except expect experience
    eye face fact fall family famous far fast father favour fear feel feet few field fight figure fill final
    find fine finger finish fire first five flat floor flow flower fly follow food foot for force forest form
    forward found four free friend from front fruit full fun future game garden gas gave general get girl give
    go gold gone good government grand grass great green ground group grow guess had hair half hand happen hard
    has have he head health hear heart heat heavy held help her here high hill him his history hit hold hole
    home hope hot hour house how huge human hundred hunt hurry ice idea if imagine important in inch include
    indicate industry information instead interest into invent iron is island issue it its job join jump just
    keep kept kill kind king knew know known land language large last late laugh law lay lead learn least leave
    led left leg length less let letter level lie life lift light like line list listen little live local locate
    long look lost lot loud love low machine made main make man many mark market matter may me mean measure meat
    meet member men metal method middle might mile million mind minute miss modern molecule moment money month
    moon more morning most mother motion mountain mouth move much music must my name nation natural nature near
    need neighbour never new next night nine no noise noon nor north nose note nothing notice now number object
    observe ocean of off office often oil old on once one only open operate opposite or order organ original
    other our out over own oxygen page paint pair paper parent part particular party pass past path pattern pay
    people percent perhaps period person picture piece place plain plan planet plant play please point police
    poor popular populate port position possible pound power practice prepare present president press pretty
    probable problem process produce product program property protect prove provide public pull push put
    question quick quiet race rain raise ran reach read ready real reason receive record red region remember
    repeat reply report represent require research rest result rich ride right rise river road rock roll room
    root rose round row rule run safe said sail salt same sand sat save saw say scale school science sea search
    season seat second section see seed seem select self sell send sense sent sentence separate serve service
    set settle seven several shall shape share sharp she ship shop shore short should shoulder shout show side
    sight sign silent similar simple since sing single sister sit six size skill skin sky sleep slip slow small
    smell smile snow so social society soft soil soldier solution solve some son song soon sound source south
    space speak special speech speed spell spend spoke spot spread spring square stand star start state station
    stay steam steel step stick still stood stop store story straight strange stream street stretch string
    strong student study subject such sudden suggest suit summer sun supply support sure surface surprise swim
    symbol system table tail take talk tall teach team tell temperature ten term test than thank that the their
    them then there these they thick thin thing think third this those though thought thousand three through
    throw thus tie time to today together told tomorrow tone too took tool top total touch toward town track
    trade train travel tree triangle trip trouble truck true trust try tube turn twenty two type under
    understand unit until up upon us use usual valley value very view village visit voice vowel wait walk wall
    want war warm was wash water wave way we wear weather week weight well went were west what when where
    whether which while who whole whose why wide wife wild will win wind winter wish with within without woman
    women wonder word work world would write written wrong yard year yellow yes yesterday yet you young your
    """
)
