"""langchain-openai."""

import asyncio

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

from cases import KEY, LONG

QUESTION = "What is the capital of France?"


class Person(BaseModel):
    """What an answer is read as."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


class weather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=12)


def chat_of(server, key="none", **settings):
    settings = {"model": "lockstep/demo", "temperature": 0, "max_tokens": 40, "max_retries": 0, **settings}
    return ChatOpenAI(base_url=server.v1, api_key=key, **settings)


def test_invoke_and_stream(server):
    chat = chat_of(server)
    answer = chat.invoke(QUESTION)
    assert answer.content and answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["system_fingerprint"].startswith("lockstep-")
    parts = list(chat_of(server, stream_usage=True).stream(QUESTION))
    assert "".join(part.content for part in parts) == answer.content
    total = sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata)
    assert total == answer.usage_metadata["output_tokens"]


def test_batch_and_async(server):
    async def ask():
        chat = chat_of(server)
        whole = await chat.ainvoke(QUESTION)
        assert "".join([part.content async for part in chat.astream(QUESTION)]) == whole.content

    first, second = chat_of(server).batch([QUESTION, QUESTION])
    assert first.content == second.content
    asyncio.run(ask())


def test_log_probabilities_and_stop(server):
    answer = chat_of(server, logprobs=True, top_logprobs=2).invoke(QUESTION)
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
    stop = answer.content[6:9]
    assert (
        chat_of(server).invoke(QUESTION, stop=[stop]).content
        == answer.content[: answer.content.index(stop)]
    )


@pytest.mark.parametrize(
    "method", ["json_schema", pytest.param("function_calling", marks=pytest.mark.tools)]
)
def test_structured_output(server, method):
    chat = chat_of(server, max_tokens=500).with_structured_output(Person, method=method)
    assert isinstance(chat.invoke(QUESTION), Person)


@pytest.mark.tools
def test_tools_are_called(server):
    chat = chat_of(server, max_tokens=500).bind_tools([weather], tool_choice="weather")
    (call,) = chat.invoke(QUESTION).tool_calls
    assert call["name"] == "weather" and list(call["args"]) == ["city"] and call["id"]
    whole = None
    for part in chat.stream(QUESTION):
        whole = part if whole is None else whole + part
    assert whole.tool_calls[0]["args"] == call["args"]


def test_completions(server):
    complete = OpenAI(
        base_url=server.v1, api_key="none", model="lockstep/demo", temperature=0, max_tokens=12
    )
    text = complete.invoke("Once upon a time")
    assert text and "".join(complete.stream("Once upon a time")) == text


def test_a_key(keyed):
    assert chat_of(keyed, KEY, max_tokens=2).invoke(QUESTION).content
    with pytest.raises(openai.AuthenticationError):
        chat_of(keyed).invoke(QUESTION)


def test_errors(server, full, loading):
    with pytest.raises(openai.UnprocessableEntityError, match="`top_p`"):
        chat_of(server, top_p=7).invoke(QUESTION)
    with pytest.raises(openai.RateLimitError, match="overloaded"):
        chat_of(full).invoke(QUESTION)
    with pytest.raises(openai.InternalServerError, match="currently loading"):
        list(chat_of(loading).stream(QUESTION))


def test_an_error_inside_a_stream(server):
    headers = {"x-request-id": "langchain-stream"}
    chat = chat_of(server, max_tokens=1500, extra_body={"grammar": LONG}, default_headers=headers)
    stream = chat.stream(QUESTION)
    next(stream)
    with server.frozen():
        server.cancel("langchain-stream")
        with pytest.raises(openai.APIError, match="cancelled"):
            list(stream)
