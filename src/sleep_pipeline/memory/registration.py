"""Make PEFT know a method that it does not ship.

`peft.utils.register_peft_method` refuses names outside its `PeftType` enum, and Python enums cannot be
extended, so the member is entered by hand into the enum's three tables. That leans on how Python builds
enums; `add_peft_type` checks every use that PEFT makes of a member, and raises at import rather than fail
later in a save.
"""

from peft.utils import PeftType


def add_peft_type(name: str) -> PeftType:
    """Add the member `name` to `PeftType` (once) and return it.

    Raises:
        ImportError: this version of PEFT or Python does not take the new member.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    try:
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        PeftType._member_names_.append(name)
        if name not in vars(PeftType):
            type.__setattr__(PeftType, name, member)
        works = (
            PeftType(name) is member
            and PeftType[name] is member
            and getattr(PeftType, name) is member
            and name in list(PeftType)
            and {member: 1}[PeftType(name)] == 1
            and hash(name) == hash(member)  # PEFT also looks methods up by the plain strings of a JSON file
            and name == member
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ImportError(f"PEFT's list of methods does not accept {name!r}: {error}; use peft 0.21") from error
    if not works:
        raise ImportError(f"PEFT's list of methods does not accept {name!r}; use peft 0.21")
    return member


CONTINUUM = add_peft_type("CONTINUUM")
