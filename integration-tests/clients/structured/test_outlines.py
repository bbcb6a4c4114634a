"""outlines, over the native route and over the OpenAI one."""

import asyncio
import re
from typing import Literal

import openai
import outlines
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import OverloadedError, UnknownError, ValidationError
from outlines.types import CFG, Regex
from pydantic import BaseModel, ConfigDict, Field

from cases import KEY, STORY, check_person

QUESTION = "What is the capital of France?"


class Person(BaseModel):
    """What an answer is read as."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


@pytest.fixture
def native(server):
    """Asks through huggingface_hub."""
    language_model = outlines.from_tgi(InferenceClient(server.url))
    return lambda kind, **more: language_model(
        STORY, kind, max_new_tokens=500, return_full_text=False, **more
    )


@pytest.fixture
def chat(server, model):
    """Asks through openai, with the fields of vLLM."""
    client = openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0)
    language_model = outlines.from_vllm(client, model)
    return lambda kind: language_model(QUESTION, kind, max_tokens=500, temperature=0)


@pytest.mark.parametrize("ask", ["native", "chat"])
def test_each_kind_of_constraint(ask, request):
    ask = request.getfixturevalue(ask)
    assert ask(Literal["red", "blue"]) in ["red", "blue"]
    assert re.fullmatch("[0-9]{4}-[0-9]{2}", ask(Regex("[0-9]{4}-[0-9]{2}")))
    check_person(ask(Person))


def test_a_context_free_grammar(chat):
    assert chat(CFG('start: "(" start ")" | "yes" | "no"')).strip("()") in ["yes", "no"]


def test_free_text_streams(server):
    language_model = outlines.from_tgi(InferenceClient(server.url))
    parts = language_model.stream(STORY, max_new_tokens=9)
    assert "".join(parts) == language_model(STORY, max_new_tokens=9, return_full_text=False)


def test_the_async_client(server):
    async def ask():
        async with AsyncInferenceClient(server.url) as client:
            language_model = outlines.from_tgi(client)
            check_person(await language_model(STORY, Person, max_new_tokens=500, return_full_text=False))

    asyncio.run(ask())


def test_errors(native, keyed, full):
    assert outlines.from_tgi(InferenceClient(keyed.url, token=KEY))(STORY, max_new_tokens=2)
    # What it knows no class of its own for, it lets pass as huggingface_hub's.
    with pytest.raises(UnknownError, match="An API key is needed"):
        outlines.from_tgi(InferenceClient(keyed.url))(STORY)
    with pytest.raises((outlines.exceptions.OutlinesError, OverloadedError), match="overloaded"):
        outlines.from_tgi(InferenceClient(full.url))(STORY)
    with pytest.raises((outlines.exceptions.OutlinesError, ValidationError), match="`temperature` must be"):
        native(None, temperature=-1.0)
