"""What the tests of several clients ask for."""

import json

KEY = "a-key-of-the-tests"
STORY = "Once upon a time"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# With the white space that a grammar allows, at most 430 characters.
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
# A text of one length, whatever the model: long enough to be interrupted.
LONG = {"type": "regex", "value": "[a-z ]{1500}"}


def check_person(text):
    """That a text is what SCHEMA describes."""
    person = json.loads(text)
    assert sorted(person) == ["age", "name"]
    assert isinstance(person["name"], str) and len(person["name"]) <= 12
    assert 0 <= person["age"] <= 120
    return person
