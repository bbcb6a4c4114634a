"""langchain-huggingface's endpoint, for texts and for chats."""

import asyncio

import pytest
from huggingface_hub.errors import OverloadedError, UnknownError, ValidationError
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

from cases import KEY, STORY

QUESTION = "What is the capital of France?"


def endpoint(server, **parameters):
    parameters = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False, **parameters}
    return HuggingFaceEndpoint(endpoint_url=server.url, task="text-generation", **parameters)


def test_invoke_and_stream(server):
    language_model = endpoint(server, seed=1)
    text = language_model.invoke(STORY)
    assert text and "".join(language_model.stream(STORY)) == text
    assert language_model.batch([STORY, "The sun"])[0] == text


def test_stop(server):
    text = endpoint(server, seed=1, max_new_tokens=40).invoke(STORY)
    stop = text[10:14]
    # It cuts the stop text off by itself.
    assert (
        endpoint(server, seed=1, max_new_tokens=40).invoke(STORY, stop=[stop]) == text[: text.index(stop)]
    )


def test_async(server):
    async def ask():
        language_model = endpoint(server, seed=1)
        text = await language_model.ainvoke(STORY)
        assert "".join([part async for part in language_model.astream(STORY)]) == text

    asyncio.run(ask())


def test_a_chat(server):
    chat = ChatHuggingFace(
        llm=endpoint(server), model_id="lockstep/demo", max_tokens=12, temperature=0.01, seed=1
    )
    answer = chat.invoke(QUESTION)
    assert answer.content and answer.usage_metadata["output_tokens"] <= 12
    assert "".join(part.content for part in chat.stream(QUESTION)) == answer.content


def test_a_key(keyed):
    # To an address of one's own it sends no token unasked.
    assert endpoint(keyed, server_kwargs={"headers": {"authorization": f"Bearer {KEY}"}}).invoke(STORY)
    with pytest.raises(UnknownError, match="An API key is needed"):
        endpoint(keyed).invoke(STORY)


def test_errors(server, full):
    with pytest.raises(ValidationError):
        endpoint(server, max_new_tokens=1_000_000).invoke(STORY)
    with pytest.raises(OverloadedError):
        endpoint(full).invoke(STORY)
