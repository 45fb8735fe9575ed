"""Secrets by the forms that their issuers, protocols and files give them; and prose that speaks of such things."""

import pytest

from sleep_pipeline.memories.masking import Masked, mask
from sleep_pipeline.memories.settings import MaskSettings

ALL = MaskSettings()
HEX = "9f86d081884c7d659a2feaa0c55ad015"
UUID = "550e8400-e29b-41d4-a716-446655440000"
LETTERS = "abcdefghijKLMNOPqrstuvwxYZ01234567"
LOWER = "abcdefghijklmnopqrstuvwxyz"

# Put together from two parts, so that no scanner takes this file for a leak.
ISSUED = {
    "Hugging Face": "hf_" + LETTERS,
    "Hugging Face, letters alone": "hf_" + LOWER + "abcdefgh",
    "GitHub, classic": "ghp_" + LOWER + "0123456789",
    "GitHub, for an app": "ghs_" + LOWER + "0123456789",
    "GitHub, fine-grained": "github_pat_" + "11ABCDEFG0" + LOWER + "_" + LOWER + "0123456789",
    "GitLab": "glpat-" + "aBcD1234efGH5678ijKL",
    "Slack, bot": "xoxb-" + "123456789012-1234567890123-" + "aBcDeFgHiJkLmNoPqRsTuVwX",
    "Slack, user": "xoxp-" + "123456789012-123456789012-123456789012-" + HEX,
    "Slack, app": "xapp-" + "1-A0123456789-1234567890123-" + HEX,
    "Stripe": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "Stripe, restricted": "rk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "OpenAI": "sk-" + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vWxY3zA5bC7dE9fG1h",
    "OpenAI, of a project": "sk-proj-" + "aB3dE5fG7h_I9jK1lM3nO5pQ7rS9-tU1vWxY3z",
    "OpenRouter": "sk-or-v1-" + HEX + HEX,
    "Anthropic": "sk-ant-api03-" + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9-tU1vWxY3z_AA",
    "AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "AWS, for a while": "ASIA" + "IOSFODNN7EXAMPLE",
    "Google, key": "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "Google, access": "ya29." + "a0AfH6SMBx-abcdefghijklmnop_qrstuvwxyz",
    "Google, short access": "ya29." + "c.Kl6iB9abcdefghijklmno",
    "Google, client": "GOCSPX-" + "abcdefGHIJKLmnop_qrstuvwxyz1",
    "npm": "npm_" + LOWER + "0123456789",
    "PyPI": "pypi-" + "AgEIcHlwaS5vcmcCJ" + LETTERS + LETTERS,
    "JWT": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiJhbm5hIn0" + ".c2lnbmF0dXJlLW9mLXRoaXM",
    "SendGrid": "SG." + "ngeVfQFYQlKU0ufo8x5d1A" + ".TwL2iGABf9DHoTf-09kqeF8tAmbihYzrnopKc-1s5cr",
    "DigitalOcean": "dop_v1_" + HEX + HEX,
    "Shopify": "shpat_" + HEX,
    "Vault": "hvs." + "CAESIJabcdefghijklmnopqrstuv",
    "Groq": "gsk_" + LETTERS + LETTERS,
}


AROUND = ("{}", "It is {}.", "(`{}`), she wrote", 'export TOKEN="{}"', "a={};b", "**{}**", '{{"t": "{}"}}', "{}, {}")


@pytest.mark.parametrize("secret", ISSUED.values(), ids=list(ISSUED))
def test_what_an_issuer_marks_as_its_own_is_masked(secret: str) -> None:
    found = {around: mask(around.format(secret, secret), ALL).text for around in AROUND}
    assert found == {around: around.format("[SECRET]", "[SECRET]") for around in AROUND}


@pytest.mark.parametrize("name", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_a_private_key_is_masked_whole(name: str) -> None:
    begin, end = f"-----BEGIN {name}" + "PRIVATE KEY-----", f"-----END {name}" + "PRIVATE KEY-----"
    assert mask(f"so:\n{begin}\nMIIEow\nIBAAKC\n{end}\nas told", ALL).text == "so:\n[SECRET]\nas told"
    assert mask(f'{{"private_key": "{begin}\\nMIIEow\\n{end}\\n"}}', ALL).text == '{"private_key": "[SECRET]\\n"}'


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"Authorization: Bearer {HEX}", "Authorization: Bearer [SECRET]"),
        (f"authorization: bearer {UUID}", "authorization: bearer [SECRET]"),
        ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer [SECRET]"),
        (
            f"curl -H 'Authorization: Bearer {UUID}' https://host",
            "curl -H 'Authorization: Bearer [SECRET]' https://host",
        ),
        (f'{{"Authorization": "Bearer {HEX}", "n": 1}}', '{"Authorization": "Bearer [SECRET]", "n": 1}'),
        (f'"{{\\"Authorization\\": \\"Bearer {HEX}\\"}}"', '"{\\"Authorization\\": \\"Bearer [SECRET]\\"}"'),
        (f"the header says Bearer {UUID}.", "the header says Bearer [SECRET]."),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic [SECRET]"),
        ("Authorization: Basic YTpi", "Authorization: Basic [SECRET]"),
        ('"authorization" => "Basic dXNlcjpwYXNzd29yZA=="', '"authorization" => "Basic [SECRET]"'),
        (f"Authorization: token {HEX}", "Authorization: token [SECRET]"),
        (f"Authorization: {HEX}", "Authorization: [SECRET]"),
        (f"Proxy-Authorization: Bearer {HEX}", "Proxy-Authorization: Bearer [SECRET]"),
        (f"X-Api-Key: {HEX}", "X-Api-Key: [SECRET]"),
        (f"X-Auth-Token: {UUID}", "X-Auth-Token: [SECRET]"),
    ],
)
def test_what_a_request_shows_to_be_let_in_is_masked(text: str, masked: str) -> None:
    assert mask(text, ALL).text == masked


@pytest.mark.parametrize("name", ["token", "access_token", "api_key", "apikey", "sig", "signature", "key", "secret"])
def test_a_parameter_of_an_address_is_masked(name: str) -> None:
    for value in (HEX, LETTERS[:32], LOWER + LOWER[:6], "VFUqOUCJoiGQwoNGBtmr", UUID, "aB3d%2BfG7hI9jK1l%3D"):
        for before, after in (("?", "&page=2"), ("?page=2&", ""), ("#", " there"), ("?", ", then")):
            address = f"see https://host.example/x{before}{name}="
            assert mask(f"{address}{value}{after}", ALL).text == f"{address}[SECRET]{after}"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://host/x?user=anna&password=pass", "https://host/x?user=anna&password=[SECRET]"),
        ("https://host/x?passwd=ring!#top", "https://host/x?passwd=[SECRET]#top"),
        ("https://host/x?client_secret=swordfish&a=1", "https://host/x?client_secret=[SECRET]&a=1"),
        ("https://host/x?X-Amz-Signature=" + HEX, "https://host/x?X-Amz-Signature=[SECRET]"),
        (f'{{"access_token": "{HEX}", "expires_in": 3600}}', '{"access_token": "[SECRET]", "expires_in": 3600}'),
        (f"{{'refreshToken': '{UUID}'}}", "{'refreshToken': '[SECRET]'}"),
        (f'{{\\"id_token\\":\\"{HEX}\\"}}', '{\\"id_token\\":\\"[SECRET]\\"}'),
        ('{"password": "swordfish", "user": "anna"}', '{"password": "[SECRET]", "user": "anna"}'),
        ('{"db_password": "pa ss,w;ord"}', '{"db_password": "[SECRET]"}'),
        (f"HF_TOKEN={HEX}", "HF_TOKEN=[SECRET]"),
        (f"token: {UUID}", "token: [SECRET]"),
        (f"client-secret := '{HEX}'", "client-secret := '[SECRET]'"),
        (f"<token>{HEX}</token>", "<token>[SECRET]</token>"),
    ],
)
def test_a_value_is_masked_for_the_name_that_it_has(text: str, masked: str) -> None:
    assert mask(text, ALL).text == masked


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("postgres://user:pa!ss@host/db", "postgres://user:[SECRET]@host/db"),
        ("postgresql+psycopg://user:user@host:5432/user", "postgresql+psycopg://user:[SECRET]@host:5432/user"),
        ("redis://:x@host:6379/0", "redis://:[SECRET]@host:6379/0"),
        ("mongodb+srv://anna.b:p%40ss/w?ord@cluster", "mongodb+srv://anna.b:[SECRET]@cluster"),
        ("amqp://guest:12345@host", "amqp://guest:[SECRET]@host"),
        ("mysql://anna:p@ss@host/db", "mysql://anna:[SECRET]@host/db"),
        ("https://anna:grün@host.example", "https://anna:[SECRET]@host.example"),
    ],
)
def test_the_password_in_an_address_is_masked_whatever_it_is(address: str, masked: str) -> None:
    assert mask(f"as in <{address}>, and on", ALL).text == f"as in <{masked}>, and on"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("my access token is abc123def456", "my access token is [SECRET]"),
        ("The token was abc123def456, I think.", "The token was [SECRET], I think."),
        (f"our secret is {UUID}", "our secret is [SECRET]"),
        ("the API token is: abc123def456!", "the API token is: [SECRET]!"),
        ("Its bearer token is abc123def456.", "Its bearer token is [SECRET]."),
        ("the password is: pa55word!", "the password is: [SECRET]!"),
        ("the passphrase is blue7whale", "the passphrase is [SECRET]"),
        ("the auth key = abc123def456", "the auth key = [SECRET]"),
    ],
)
def test_a_secret_is_masked_where_people_tell_it(text: str, masked: str) -> None:
    assert mask(text, ALL).text == masked


@pytest.mark.parametrize(
    "address",
    [
        "anna@exämple.org",
        "anna@xn--exmple-cua.org",
        "anna@beispiel.xn--p1ai",
        "анна@пример.рф",
        "用户@例子.公司",
        "डाटा@डाटामेल.भारत",
        "anna.b@mail.bücher.example",
    ],
)
def test_an_address_at_a_domain_of_any_script_is_masked(address: str) -> None:
    found = mask(f"write to {address}, or <{address}>.", ALL)
    assert (found.text, found.counts) == ("write to [EMAIL], or <[EMAIL]>.", {"email": 2})
    assert mask(f"_{address}_ '{address}'", ALL).text == "[EMAIL]_ '[EMAIL]'"


def test_each_secret_is_counted_once() -> None:
    text = f"Authorization: Bearer {HEX}\npostgres://anna:pa!ss@host/x?token={UUID}\n"
    text += f"{ISSUED['Hugging Face']} and {ISSUED['AWS']}"
    found = mask(text, ALL)
    assert found.counts == {"secret": 5}
    assert mask(found.text, ALL) == Masked(found.text, {})


def test_no_form_takes_long_over_a_long_line() -> None:
    for part in ("eyJ", "token=", "a://b:", "Bearer ", "sk-ant-", "a@", "é.", "password ", "://:", "a@b.", "b.c-"):
        mask(part * 4000, ALL)


PAGE = """\
She kept the token in her pocket, a token of thanks; each token costs 125 pence, and tokens are sold in the hall.
The secret of the garden is told in chapter 12, and her secret: a door behind the ivy. It is no secret that they leak.
The bearer of bad news came at 12:30; the ring-bearer, a bearer cheque and bearer bonds worth 12,500,000 florins came.
The bearer counterrevolutionaries-in-waiting met; a bearer internationalization was planned for 2024-11-05 in room 480.
The key is under the mat. Her key: brass, 12 cm long. The key to the quay is the quay's key; keys 1234567890 fit door 7.
The password is written on the door. Passwords: none. Password protection matters; a password should have 12 characters.
Basic needs come first: a basic income, basic arithmetic, and basic instructions in Basic English for 1,200 words.
The authorization: granted. Authorization: see section 4.2.1. Authorization is given by the council in 2024.
Authorization: Basic requirements apply; authorization: Bearer tokens explained on page 16.
Is the token a word? The token is a word-piece; the token was 'ing', the next token is probable, with probability 0.25.
The tokens were counted: 1,048,576 in all, 512 at a time. Max_tokens: 512. Token: see glossary. Secret: none.
The api key is missing. The access token is expired, so the access token was renewed on 2024-11-05 at noon.
The secret ingredient is cinnamon. The secret key is to listen; the key is practice-practice-practice.
His signature = a flourish. What is the sig? See https://host.example/page?id=12&lang=en&key=name&token=word#top.
The address https://host.example:8080/@anna is hers, and https://host.example/@anna/1234 a note; mail goes @ noon.
The notes at http://host.example:80 mention https://other.example: a site by anna. See ftp://mirror:21/pub@2.
git+https://github.com/org/project@v1.2.3 and npm install @org/pkg@2.0.1 work; so does git clone host:org/project.git.
The task-list sk-learn is a name; hf_hub, hf_transfer, ghp_ and npm_config_registry are too; so is desk-1234567890.
"token": "word", "secret": "no", {"next_token": "Paris", "max_tokens": 2048, "token_type": "Bearer"}
He passed the pass at 2,100 m with a boarding pass; pass: A12. A passenger, a compass, a passage, a password manager.
In 2024 the Basic Law turned 75. The credential was a diploma; credentials are checked at 9. Credentials: two letters.
decoded_token = base64.b64decode(encoded_token); token = _RETRY_429_ALLOWED.set(True); api_key = keys.first
The jwt has three parts, such as header.payload.signature, and the eyJ at its beginning is base64 for a brace.
"""


CODE = """\
api_key = os.environ["OPENAI_API_KEY"]
api_key=os.getenv("X")
client = OpenAI(api_key=settings.openai_api_key)
SECRET_KEY = os.urandom(32)
const apiKey = process.env.API_KEY;
api_key = secrets.token_hex(16)
password = models.CharField(max_length=9)
password = get_secret(name, "region")
password=hash_password(user.password)
$password = $_POST["password"];
kubectl create secret generic db --from-literal=password=$DB_PASSWORD
API_KEY=${OPENAI_API_KEY}
Get an API key: https://platform.example/account/api-keys
3 of 4 tests pass: test_a, test_b
Password - reset/forgot link
"""


@pytest.mark.parametrize("line", CODE.splitlines())
def test_code_and_links_that_say_where_a_secret_is_stay_as_they_are(line: str) -> None:
    assert mask(line, ALL) == Masked(line, {})


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("password = hunter(2)x!", "password = [SECRET]"),
        ("Password: hunter(2)", "Password: [SECRET]"),
        ("the password is hunter(two)x9 now", "the password is [SECRET] now"),
        ("password: $ecret99x", "password: [SECRET]"),
        ("my pass: $SECRET!9 now", "my pass: [SECRET] now"),
        ("password: correct.horse.battery", "password: [SECRET]"),
        ('connect(db_password="sun_flower")', 'connect(db_password="[SECRET]")'),
        ("API key: https://anna:pass@host", "API key: https://anna:[SECRET]@host"),
        ("pass: abc#def!", "pass: [SECRET]!"),
    ],
)
def test_a_password_that_resembles_code_is_masked(text: str, masked: str) -> None:
    assert mask(text, ALL).text == masked


@pytest.mark.parametrize("line", PAGE.splitlines())
def test_prose_about_secrets_stays_as_it_is(line: str) -> None:
    assert mask(line, ALL) == Masked(line, {})


def test_a_page_of_prose_about_secrets_stays_as_it_is() -> None:
    page = PAGE.replace("\n", " ")
    assert mask(page, ALL) == Masked(page, {})
