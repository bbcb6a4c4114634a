"""guidance, whose programs become grammars of ours."""

import openai
import pytest
from guidance import assistant, gen, select, user
from guidance.models.experimental import VLLMModel


def start(server, key="none"):
    language_model = VLLMModel("lockstep/demo", base_url=server.v1, api_key=key, echo=False)
    with user():
        language_model += "What is the capital of France?"
    return language_model


def test_a_program(server):
    language_model = start(server)
    with assistant():
        # One expression: over OpenAI's interface guidance goes on with no answer that it has begun.
        city = select(["Paris", "London"], name="city")
        language_model += "The capital is " + city + ", founded in " + gen("year", regex="[0-9]{3}") + "."
    assert language_model["city"] in ["Paris", "London"]
    assert language_model["year"].isdigit() and len(language_model["year"]) == 3


def test_a_key(keyed):
    language_model = start(keyed)
    with pytest.raises(openai.AuthenticationError), assistant():
        language_model += gen("answer", max_tokens=5)
