"""openai for Python."""

import asyncio
import json

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

from cases import KEY, LONG, QUESTION, SCHEMA, STORY, check_person
from lockstep_server import wait_until

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Person(BaseModel):
    """What an answer is read as."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


def client_of(server, key="none", **settings):
    return OpenAI(base_url=server.v1, api_key=key, max_retries=0, **settings)


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


@pytest.fixture(scope="module")
def ask(client, model):
    """Asks for a chat's answer."""

    def ask(**parameters):
        parameters = {
            "model": model,
            "messages": QUESTION,
            "max_tokens": 30,
            "temperature": 0,
            **parameters,
        }
        return client.chat.completions.create(**parameters)

    return ask


def test_a_chat(ask, model):
    answer = ask()
    (choice,) = answer.choices
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.created > 0
    assert answer.model == model and answer.system_fingerprint.startswith("lockstep-")
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.message.refusal is None and not choice.message.tool_calls
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
    assert ask().id != answer.id


def test_a_streamed_chat_is_the_whole_answer(ask):
    whole = ask(logprobs=True, top_logprobs=2)
    chunks = list(ask(logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    *parts, last = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert (
        "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    )
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    logprobs = [part.choices[0].logprobs for part in parts]
    tokens = [token for each in logprobs if each for token in each.content]
    assert tokens == whole.choices[0].logprobs.content
    assert all(part.usage is None for part in parts)
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens


def test_usage_comes_in_every_chunk_where_asked(ask):
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk.usage.completion_tokens for chunk in ask(stream=True, stream_options=options)]
    assert counts == sorted(counts) and counts[-1] > counts[0]


def test_a_stream_without_usage(ask):
    assert all(chunk.usage is None and chunk.choices for chunk in ask(stream=True))


def test_log_probabilities(ask):
    answer = ask(logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) in [answer.usage.completion_tokens, answer.usage.completion_tokens - 1]
    for token in tokens:
        assert token.logprob <= 0 and bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
    assert ask().choices[0].logprobs is None


def test_the_stream_helper(client, model):
    with client.chat.completions.stream(
        model=model, messages=QUESTION, max_tokens=30, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_completion()
    assert "content.delta" in kinds and kinds[-1] == "content.done"
    assert answer.choices[0].message.content


def test_several_answers(ask):
    answer = ask(n=3, temperature=2.5, seed=3)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) > 1
    streamed = {0: "", 1: "", 2: ""}
    for chunk in ask(n=3, temperature=2.5, seed=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_is_cut_off(ask, as_list):
    free = ask().choices[0].message.content
    stop = free[6:9]
    choice = ask(stop=[stop, "never to be seen"] if as_list else stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == (free[: free.index(stop)], "stop")


def test_length(ask):
    answer = ask(max_tokens=3)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3
    answer = ask(max_tokens=openai.NOT_GIVEN, max_completion_tokens=3)
    assert answer.usage.completion_tokens == 3


def test_sampling_with_a_seed(ask):
    first, again, other = (ask(temperature=2.5, seed=seed, top_p=0.99) for seed in (5, 5, 6))
    assert first.choices[0].message == again.choices[0].message != other.choices[0].message
    assert first.system_fingerprint == again.system_fingerprint


def test_penalties_and_bias_change_the_answer(ask):
    story = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 60}
    plain = ask(**story).choices[0].message.content
    token = ask(**story, logprobs=True).choices[0].logprobs.content[0].token
    assert plain.startswith(token)
    for parameters in [{"presence_penalty": 2}, {"frequency_penalty": 2}]:
        assert ask(**story, **parameters).choices[0].message.content != plain


def test_a_schema(ask):
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "p", "strict": True, "schema": SCHEMA},
    }
    check_person(ask(response_format=response_format, max_tokens=500).choices[0].message.content)
    chunks = ask(response_format=response_format, max_tokens=500, stream=True)
    check_person("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def test_any_json(ask):
    answer = ask(response_format={"type": "json_object"}, max_tokens=400, temperature=1, seed=2)
    choice = answer.choices[0]
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_parse_with_pydantic(client, model):
    answer = client.chat.completions.parse(
        model=model, messages=QUESTION, response_format=Person, max_tokens=500, temperature=1.5, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_parse_of_a_cut_answer(client, model):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=model, messages=QUESTION, response_format=Person, max_tokens=3)


@pytest.mark.tools
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_is_called(ask, choice):
    answer = ask(tools=[TOOL], tool_choice=choice, max_tokens=500).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and call.type == "function" and call.id
    assert call.function.name == "weather" and list(json.loads(call.function.arguments)) == ["city"]
    chunks = list(ask(tools=[TOOL], tool_choice=choice, max_tokens=500, stream=True))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [delta.function.name for delta in deltas if delta.function.name] == ["weather"]
    assert len([delta.id for delta in deltas if delta.id]) == 1
    assert "".join(delta.function.arguments or "" for delta in deltas) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.tools
def test_a_conversation_with_a_tool(ask):
    call = ask(tools=[TOOL], tool_choice="required", max_tokens=500).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "sunny"}
    messages = [*QUESTION, call.model_dump(exclude_none=True), result]
    answer = ask(messages=messages, tools=[TOOL], tool_choice="none")
    assert answer.choices[0].message.content


@pytest.mark.tools
def test_tools_are_parsed(client, model):
    tool = openai.pydantic_function_tool(Person)
    answer = client.chat.completions.parse(
        model=model, messages=QUESTION, tools=[tool], tool_choice="required", max_tokens=500
    )
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Person)


@pytest.mark.tools
def test_no_tool_where_none_may_be_called(ask):
    choice = ask(tools=[TOOL], tool_choice="none").choices[0]
    assert choice.message.content and not choice.message.tool_calls


def test_completions(client, model):
    def complete(**parameters):
        return client.completions.create(
            **{"model": model, "prompt": STORY, "max_tokens": 12, "temperature": 0, **parameters}
        )

    answer = complete()
    assert answer.object == "text_completion" and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    text = answer.choices[0].text
    assert complete(echo=True).choices[0].text == STORY + text
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == 12
    several = complete(prompt=[STORY, "The sun"], n=2, temperature=1, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert complete(best_of=2, n=1, temperature=1).choices[0].text
    stop = text[4:7]
    assert complete(stop=stop).choices[0].text == text[: text.index(stop)]


def test_log_probabilities_of_a_prompt(client, model):
    answer = client.completions.create(
        model=model, prompt=STORY, max_tokens=1, echo=True, logprobs=2, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    assert all(len(top) >= 2 for top in logprobs.top_logprobs[1:])


def test_models(client, model):
    assert [each.id for each in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_headers(client, model):
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=QUESTION, max_tokens=3, extra_headers={"x-request-id": "of-the-client"}
    )
    assert raw.headers["x-request-id"] == raw.request_id == "of-the-client"
    assert raw.headers["x-generated-tokens"] == "3"
    assert raw.parse()._request_id == "of-the-client"


def test_an_answer_from_the_cache(keyed, model):
    chats = client_of(keyed, KEY).chat.completions.with_raw_response

    def ask(**headers):
        return chats.create(
            model=model, messages=QUESTION, max_tokens=9, temperature=0, extra_headers=headers
        )

    answers = [ask(), ask(), ask(**{"x-use-cache": "false"})]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit", "bypass"]
    assert len({answer.parse().choices[0].message.content for answer in answers}) == 1


def test_fields_of_our_own(ask):
    answer = ask(extra_body={"grammar": {"type": "regex", "value": "[0-9]{5}"}, "ignore_eos": False})
    assert answer.choices[0].message.content.isdigit()


def test_a_left_stream_is_cancelled(client, server, model):
    def dropped():
        return server.series()['tgi_request_failure{err="dropped"}']

    before = dropped()
    stream = client.completions.create(
        model=model, prompt="a", stream=True, max_tokens=1500, extra_body={"grammar": LONG}
    )
    next(iter(stream))
    stream.close()
    wait_until("the request is counted as left", lambda: dropped() == before + 1)
    server.wait_until_idle()


def test_the_async_client(server, model):
    async def ask():
        async with AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0) as client:
            common = {"model": model, "messages": QUESTION, "max_tokens": 20, "temperature": 0}
            answers = await asyncio.gather(*(client.chat.completions.create(**common) for _ in range(8)))
            texts = {answer.choices[0].message.content for answer in answers}
            assert len(texts) == 1 and len({answer.id for answer in answers}) == 8
            stream = await client.chat.completions.create(**common, stream=True)
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) in texts
            with pytest.raises(openai.UnprocessableEntityError):
                await client.chat.completions.create(**common, top_p=7)

    asyncio.run(ask())


def test_a_key(keyed, model):
    assert client_of(keyed, KEY).models.list().data[0].id == model
    for ask in [
        lambda client: client.models.list(),
        lambda client: client.chat.completions.create(model=model, messages=QUESTION),
        lambda client: client.completions.create(model=model, prompt=STORY, stream=True),
    ]:
        with pytest.raises(openai.AuthenticationError) as refusal:
            ask(client_of(keyed, "wrong"))
        assert refusal.value.body["type"] == "authentication_error"


def test_what_breaks_a_rule(ask, client):
    with pytest.raises(openai.UnprocessableEntityError, match="`top_p` must be") as refusal:
        ask(top_p=7)
    error = refusal.value
    assert (error.type, error.param, error.code) == ("invalid_request_error", "top_p", "validation")
    assert error.request_id
    with pytest.raises(openai.UnprocessableEntityError, match="`prompt` tokens"):
        client.completions.create(model="any", prompt=STORY, max_tokens=10_000, stream=True)
    with pytest.raises(openai.BadRequestError):
        client.post(
            "/completions",
            content=b"{",
            options={"headers": {"content-type": "application/json"}},
            cast_to=object,
        )


def test_what_is_not_there(client, ask):
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="any", input="a")
    with pytest.raises(openai.NotFoundError, match="The adapter nobody is not loaded"):
        ask(extra_body={"adapter_id": "nobody"})


def test_a_model_that_nobody_knows_is_served_and_named(ask):
    assert ask(model="gpt-4o", max_tokens=2).model == "gpt-4o"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_server(full, model, stream):
    with pytest.raises(openai.RateLimitError, match="Model is overloaded") as refusal:
        client_of(full).chat.completions.create(model=model, messages=QUESTION, stream=stream)
    assert int(refusal.value.response.headers["retry-after"]) >= 1
    assert refusal.value.type == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_loads(loading, model, stream):
    with pytest.raises(openai.InternalServerError, match="currently loading") as refusal:
        client_of(loading).chat.completions.create(model=model, messages=QUESTION, stream=stream)
    assert refusal.value.status_code == 503 and refusal.value.code == "loading"


def test_a_request_that_takes_too_long(server, client, model):
    with server.frozen(), pytest.raises(openai.InternalServerError) as refusal:
        client.completions.create(
            model=model, prompt="too long", extra_headers={"x-request-timeout": "0.2"}
        )
    assert refusal.value.status_code == 504


def test_an_error_inside_a_stream(server, client, model):
    stream = client.completions.create(
        model=model,
        prompt="a",
        stream=True,
        max_tokens=1500,
        extra_body={"grammar": LONG},
        extra_headers={"x-request-id": "openai-stream"},
    )
    next(iter(stream))
    with server.frozen():
        server.cancel("openai-stream")
        with pytest.raises(openai.APIError, match="cancelled") as refusal:
            list(stream)
    assert refusal.value.code == "cancelled"
