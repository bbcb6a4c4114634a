"""litellm, through its OpenAI and its Hugging Face providers."""

import asyncio
import os

import pytest

from cases import KEY, LONG, QUESTION, SCHEMA, STORY, check_person

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
from litellm.exceptions import MidStreamFallbackError

PROVIDERS = ["openai/lockstep/demo", "huggingface/lockstep/demo", "hosted_vllm/lockstep/demo"]


def ask(server, model, key="none", **parameters):
    parameters = {"messages": QUESTION, "max_tokens": 30, "temperature": 0, "max_retries": 0, **parameters}
    base = server.url if model.startswith("huggingface/") else server.v1
    return litellm.completion(model=model, api_base=base, api_key=key, **parameters)


@pytest.mark.parametrize("model", PROVIDERS)
def test_completion_and_stream(server, model):
    answer = ask(server, model)
    text = answer.choices[0].message.content
    assert text and answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 0
    chunks = list(ask(server, model, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


def test_text_completion(server):
    common = {
        "model": "text-completion-openai/lockstep/demo",
        "api_base": server.v1,
        "api_key": "none",
        "prompt": STORY,
        "max_tokens": 12,
        "temperature": 0,
    }
    text = litellm.text_completion(**common).choices[0].text
    chunks = litellm.text_completion(**common, stream=True)
    assert text and "".join(chunk.choices[0].text or "" for chunk in chunks) == text


def test_a_schema(server):
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "p", "strict": True, "schema": SCHEMA},
    }
    check_person(
        ask(server, PROVIDERS[0], response_format=response_format, max_tokens=500)
        .choices[0]
        .message.content
    )


@pytest.mark.tools
def test_a_tool_is_called(server):
    tool = {"type": "function", "function": {"name": "person", "parameters": SCHEMA}}
    answer = ask(server, PROVIDERS[0], tools=[tool], tool_choice="required", max_tokens=500)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "person" and check_person(call.function.arguments)


def test_the_async_client(server):
    async def both():
        common = {"model": PROVIDERS[0], "api_base": server.v1, "api_key": "none", "messages": QUESTION}
        whole = await litellm.acompletion(**common, temperature=0, max_tokens=30)
        stream = await litellm.acompletion(**common, temperature=0, max_tokens=30, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == whole.choices[0].message.content

    asyncio.run(both())


@pytest.mark.parametrize("model", PROVIDERS)
def test_errors(server, keyed, full, loading, model):
    assert ask(keyed, model, KEY).choices[0].message.content
    with pytest.raises(litellm.AuthenticationError):
        ask(keyed, model, "wrong")
    # Its Hugging Face provider has no class for a 422.
    refused = litellm.APIError if model.startswith("huggingface/") else litellm.BadRequestError
    with pytest.raises((refused, litellm.UnprocessableEntityError), match="`top_p` must be"):
        ask(server, model, top_p=7.0)
    with pytest.raises(litellm.RateLimitError, match="overloaded"):
        ask(full, model)
    with pytest.raises(
        (litellm.ServiceUnavailableError, litellm.InternalServerError), match="currently loading"
    ):
        ask(loading, model)


def test_an_error_inside_a_stream(server):
    headers = {"x-request-id": "litellm-stream"}
    stream = ask(
        server,
        PROVIDERS[0],
        max_tokens=1500,
        stream=True,
        extra_body={"grammar": LONG},
        extra_headers=headers,
    )
    next(stream)
    with server.frozen():
        server.cancel("litellm-stream")
        with pytest.raises(MidStreamFallbackError, match="cancelled"):
            list(stream)
