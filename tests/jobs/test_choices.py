"""What an owner has chosen is remembered for that owner alone."""

from darkroom import choices
from darkroom.db import Database


def test_choice_is_its_owners_alone_and_the_last_one_holds(database: Database) -> None:
    assert choices.chosen_model(database, owner="ann") is None
    choices.choose_model(database, "first", owner="ann")
    choices.choose_model(database, "second", owner="ann")
    choices.choose_model(database, "other", owner="bob")
    assert choices.chosen_model(database, owner="ann") == "second"
    assert choices.chosen_model(database, owner="bob") == "other"
