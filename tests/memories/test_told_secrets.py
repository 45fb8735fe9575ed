"""Passwords, PINs and social security numbers in the words of people, and sentences that only speak of such things."""

import pytest

from sleep_pipeline.memories.masking import Masked, mask, mask_content
from sleep_pipeline.memories.records import Content
from sleep_pipeline.memories.settings import MaskSettings

ALL = MaskSettings()


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("wifi password is sunflower", "wifi password is [SECRET]"),
        ("The wifi password is sunflower.", "The wifi password is [SECRET]."),
        ("the password for the guest wifi is sunflower, ask me", "the password for the guest wifi is [SECRET], ask me"),
        ("the password for a@b.example is sunflower", "the password for [EMAIL] is [SECRET]"),
        ("The password was Swordfish!", "The password was [SECRET]!"),
        ("The password is now sunflower and it works.", "The password is now [SECRET] and it works."),
        ('She said "the password is sunflower."', 'She said "the password is [SECRET]."'),
        ('The password is "sunflower".', 'The password is "[SECRET]".'),
        ("user anna, password: sunflower", "user anna, password: [SECRET]"),
        ("wifi: MyNet / password: blue-whale", "wifi: MyNet / password: [SECRET]"),
        ("| wifi | password: sunflower |", "| wifi | password: [SECRET] |"),
        ("(password: sunflower)", "(password: [SECRET])"),
        ("**Wifi password:** sunflower\nCome in.", "**Wifi password:** [SECRET]\nCome in."),
        ('{"text": "the password is sunflower.", "n": 1}', '{"text": "the password is [SECRET].", "n": 1}'),
        ('[{"text": "the password is sunflower"}]', '[{"text": "the password is [SECRET]"}]'),
        ("the password = admin", "the password = [SECRET]"),
        ("Das Passwort ist Sonnenblume.", "Das Passwort ist [SECRET]."),
        ("passphrase: correct horse battery staple", "passphrase: [SECRET]"),
        ("The passphrase is correct horse battery staple.", "The passphrase is [SECRET]."),
        ("The passphrase is sunflower.", "The passphrase is [SECRET]."),
        ("PIN is 1234", "PIN is [SECRET]"),
        ("My pin: 123456.", "My pin: [SECRET]."),
        ("pin code 4821", "pin code [SECRET]"),
        ("pin code: 048210, 12345678", "pin code: [SECRET], 12345678"),
        ("My PIN code is 482104.", "My PIN code is [SECRET]."),
        ("pin number: 482104", "pin number: [SECRET]"),
        ("The PIN for the card is 4821, I think.", "The PIN for the card is [SECRET], I think."),
        ("the passcode is 4821 or 2114", "the passcode is [SECRET] or 2114"),
        ("| Password | hunter22 |", "| Password | [SECRET] |"),
        ("| **Wifi password** | `hunter22`   |", "| **Wifi password** | `[SECRET]`   |"),
        ("| PIN | 4821 |", "| PIN | [SECRET] |"),
        ("Password:\nS3cret!pw9\nMira", "Password:\n[SECRET]\nMira"),
        ("**Password:**\n\n`S3cret!pw9`", "**Password:**\n\n`[SECRET]`"),
        ("PIN:\n4821", "PIN:\n[SECRET]"),
        ("SSN is 123-45-6789", "SSN is [SSN]"),
        ("SSN: 987-65-4321", "SSN: [SSN]"),
        ("her social security number is 123 45 6789.", "her social security number is [SSN]."),
        ("Social Security No. 123456789", "Social Security No. [SSN]"),
        ("on file: 123-45-6789, 078-05-1121", "on file: [SSN], [SSN]"),
    ],
)
def test_what_people_tell_is_masked_and_counted(text: str, masked: str) -> None:
    found = mask(text, ALL)
    assert found.text == masked
    assert found.counts.get("secret", 0) == masked.count("[SECRET]")
    assert found.counts.get("ssn", 0) == masked.count("[SSN]")
    assert mask(masked, ALL) == Masked(masked, {})


@pytest.mark.parametrize(
    "text",
    [
        "the password is wrong",
        "The password is wrong, again, and password is required.",
        "The password is required for the login.",
        "The password is not sunflower.",
        "The password is expired; it was changed and is unforgettable.",
        "The password is too short, or case-sensitive.",
        "The password is stored hashed, and the passphrase is used to encrypt the file.",
        "The passphrase is long enough to remember easily",
        "The password is written on the door.",
        "The password is something that you know.",
        "The wifi password: ask at the desk.",
        "Password: see below",
        "login({user: user, password: hash})",
        "# Password:\nWelcome",
        "password: <your password>",
        "| User | Password | Role |\n| --- | --- | --- |",
        "| password | varchar(255) | not null |\n| password | 8 to 64 characters |\n| Pin | 4821 kB |",
        "Password:\nhttps://host.example/reset2\nPassword:\nSection 12",
        "| test_a | pass | 12.3ms |\nThese pass:\ntest_12",
        "PIN:\n2024 was a good year.",
        "def login(self, user: str, password: str, passphrase: str | None = None) -> bool:",
        "    login(user, password=password, passphrase=passphrase)  # password: Password for the login",
        "What is the password? Is the password sunflower?",
        "The password must be eight characters.",
        "Passwords: none. The passwords are sunflowers.",
        "MG Road, Bengaluru, PIN code 560001; pin code: 560034, Pincode - 560001",
        "Pin 13 is high; the pin is 13, pin: 5.",
        "He pinned 1234 notes; the pin is 12345678901.",
        "part 000-12-3456, 666-12-3456, 123-00-6789 and 555-12-3456-7",
        "Social Security paid 123456789 dollars",
        "The SSN has the form ddd-dd-dddd; the last four of hers are 6789.",
        "on 2024-05-12, version 1.123-45-6789",
    ],
)
def test_what_only_speaks_of_such_things_stays(text: str) -> None:
    assert mask(text, ALL) == Masked(text, {})


@pytest.mark.parametrize(
    ("question", "answer", "masked"),
    [
        ("What is my PIN?", "4821", "[SECRET]"),
        ("What is my PIN code?", "It's 4821, I think.", "It's [SECRET], I think."),
        ("What is the wifi password?", "sunflower42", "[SECRET]"),
        ("what's the password for the guest wifi again?", "It is Sunflower.", "It is [SECRET]."),
        ("Tell me the password, please.", "Sure, that's S3cret!pw9. Keep it.", "Sure, that's [SECRET]. Keep it."),
        ("What is the passphrase?", "correct horse battery staple", "[SECRET]"),
        ("Can you remind me of the passcode?", "4821, or ask.", "[SECRET], or ask."),
        ("Wie ist das Passwort?", "Sonnenblume\nEs steht auch an der Wand.", "[SECRET]\nEs steht auch an der Wand."),
        ("Do you know who changed the password?", "Anna.", None),
        ("Which password?", "Netflix.", None),
        ("What is the wifi password?", "Ask at the desk.", None),
        ("What is the wifi password?", "Unfortunately, I do not know.", None),
        ("What is the wifi password?", "Unknown.", None),
        ("When did I change my PIN?", "In March 2024.", None),
        ("What is my PIN?", "In March 2024 it was changed.", None),
        ("Did you change the password?", "Yesterday.", None),
        ("What is a password manager?", "Software.", None),
        ("What is a password?", "Something.", None),
        ("Which pin broke?", "1024", None),
    ],
)
def test_what_is_asked_for_is_masked_in_the_reply(question: str, answer: str, masked: str | None) -> None:
    content, counts = mask_content(Content("qa", question=question, answer=answer), ALL)
    assert (content.question, content.answer) == (question, masked or answer)
    assert counts == ({"secret": 1} if masked else {})
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    chat, _ = mask_content(Content("chat", messages=(*turns, *turns)), ALL)
    assert [turn["content"] for turn in chat.messages] == [question, masked or answer] * 2
    assert mask_content(chat, ALL) == (chat, {})
    off = MaskSettings(secrets=False)
    assert mask_content(Content("qa", question=question, answer=answer), off)[0].answer == answer


@pytest.mark.slow
def test_no_rule_takes_long_over_a_long_line() -> None:
    for part in (
        "password for ",
        "password is ",
        "passphrase is a b c d ",
        "pin code for the ",
        "SSN ",
        "123-45-",
        "what is ",
        "Password:\n",
        "| pw ",
    ):
        mask(part * 4000, ALL)
