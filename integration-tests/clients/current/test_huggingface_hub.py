"""huggingface_hub's InferenceClient and AsyncInferenceClient."""

import asyncio
import re

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import (
    HfHubHTTPError,
    OverloadedError,
    TextGenerationError,
    UnknownError,
    ValidationError,
)

from cases import KEY, LONG, QUESTION, SCHEMA, STORY, check_person

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(server):
    return InferenceClient(model=server.url)


def test_plain_text(client):
    text = client.text_generation(STORY, max_new_tokens=12, return_full_text=False)
    assert isinstance(text, str) and len(text) > 12 and not text.startswith(STORY)
    assert text == client.text_generation(STORY, max_new_tokens=12, return_full_text=False)
    # At this address the whole text is what comes unasked.
    assert client.text_generation(STORY, max_new_tokens=12) == STORY + text


def test_details(client):
    answer = client.text_generation(
        STORY, max_new_tokens=8, details=True, decoder_input_details=True, return_full_text=False
    )
    details = answer.details
    assert (details.finish_reason, details.generated_tokens, details.seed) == ("length", 8, None)
    assert "".join(token.text for token in details.tokens) == answer.generated_text
    assert all(token.logprob <= 0 and not token.special for token in details.tokens)
    assert "".join(token.text for token in details.prefill).endswith(STORY)
    assert details.prefill[0].logprob is None
    assert all(token.logprob <= 0 for token in details.prefill[1:])


def test_stream_is_the_whole_answer(client):
    whole = client.text_generation(STORY, max_new_tokens=20, return_full_text=False)
    parts = list(client.text_generation(STORY, max_new_tokens=20, stream=True))
    assert "".join(parts) == whole and len(parts) == 20


def test_stream_with_details(client):
    whole = client.text_generation(STORY, max_new_tokens=20, details=True, top_n_tokens=3)
    assert whole.generated_text.startswith(STORY)
    events = list(
        client.text_generation(STORY, max_new_tokens=20, details=True, top_n_tokens=3, stream=True)
    )
    assert [event.index for event in events] == list(range(1, 21))
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert [event.token.logprob for event in events] == [token.logprob for token in whole.details.tokens]
    # Greedy: the chosen token is the likeliest.
    assert all(len(event.top_tokens) == 3 for event in events)
    # The client leaves these as they come in its whole answers, and half read in its streams.
    assert [each[0]["id"] for each in whole.details.top_tokens] == [event.token.id for event in events]
    assert [event.top_tokens for event in events] == whole.details.top_tokens
    assert all(event.details is None and event.generated_text is None for event in events[:-1])
    last = events[-1]
    assert last.generated_text == whole.generated_text
    assert (last.details.finish_reason, last.details.generated_tokens) == ("length", 20)
    assert last.details.input_length > 0


@pytest.mark.parametrize("kind", ["json", "json_schema"])
def test_grammar_of_a_schema(client, kind):
    value = SCHEMA if kind == "json" else {"name": "person", "schema": SCHEMA}
    grammar = {"type": kind, "value": value}
    text = client.text_generation("A person: ", grammar=grammar, max_new_tokens=500, return_full_text=False)
    check_person(text)


def test_grammar_of_a_regular_expression(client):
    grammar = {"type": "regex", "value": "[0-9]{3}-[0-9]{4}"}
    events = client.text_generation("Call ", grammar=grammar, max_new_tokens=30, stream=True, details=True)
    text = "".join(event.token.text for event in events if not event.token.special)
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", text)


def test_stop_sequences_end_the_text_and_stay_in_it(client):
    free = client.text_generation(STORY, max_new_tokens=60)
    stop = free[20:24]
    whole = client.text_generation(STORY, max_new_tokens=60, stop=[stop, "never to be seen"], details=True)
    assert whole.generated_text == free[: free.index(stop) + len(stop)]
    assert whole.details.finish_reason == "stop_sequence"
    events = list(client.text_generation(STORY, max_new_tokens=60, stop=[stop], details=True, stream=True))
    assert events[-1].generated_text == whole.generated_text


def test_the_old_name_of_stop(server, client):
    stop = client.text_generation(STORY, max_new_tokens=60)[20:24]
    # Today's client does not know it, yesterday's did.
    body = {"inputs": STORY, "parameters": {"max_new_tokens": 60, "stop": [stop]}}
    status, answer = server.post("/", body)
    assert status == 200 and answer[0]["generated_text"].endswith(stop)


def test_a_seed_gives_the_same_text_again(client):
    def ask(seed):
        return client.text_generation(
            STORY, max_new_tokens=24, do_sample=True, temperature=1.5, seed=seed, details=True
        )

    first, again, other = ask(2**63), ask(2**63), ask(7)
    assert first.details.seed == 2**63
    assert first.generated_text == again.generated_text != other.generated_text


def test_best_of_tells_the_others(client):
    answer = client.text_generation(STORY, max_new_tokens=8, do_sample=True, best_of=2, details=True)
    (other,) = answer.details.best_of_sequences
    mean = [
        sum(token.logprob for token in each) / len(each) for each in (answer.details.tokens, other.tokens)
    ]
    assert mean[0] >= mean[1]
    assert other.generated_tokens == 8


def test_return_full_text(client):
    text = client.text_generation(STORY, max_new_tokens=8, return_full_text=False)
    assert client.text_generation(STORY, max_new_tokens=8, return_full_text=True) == STORY + text


def test_truncate_keeps_the_end(client):
    answer = client.text_generation(
        f"Nothing of this is read. {STORY}",
        max_new_tokens=4,
        truncate=2,
        decoder_input_details=True,
        details=True,
    )
    assert len(answer.details.prefill) == 2
    assert STORY.endswith(answer.details.prefill[-1].text)


@pytest.mark.parametrize(
    "parameters",
    [
        {"typical_p": 0.4},
        {"top_p": 0.3},
        {"top_k": 2},
        {"temperature": 3.0},
        {"repetition_penalty": 3.0},
        {"frequency_penalty": 2.0},
    ],
)
def test_each_way_to_sample_changes_the_text(client, parameters):
    common = {"max_new_tokens": 40, "do_sample": True, "seed": 3, "temperature": 1.2}
    plain = client.text_generation(STORY, **common)
    assert client.text_generation(STORY, **{**common, **parameters}) != plain


def test_a_chat(client, server):
    answer = client.chat_completion(QUESTION, max_tokens=12, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ["stop", "length"]
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens <= usage.prompt_tokens + 12
    assert answer.system_fingerprint.startswith("lockstep-")
    openai_like = InferenceClient(base_url=server.v1).chat.completions
    through_base = openai_like.create(messages=QUESTION, max_tokens=12, temperature=0)
    assert through_base.choices[0].message.content == choice.message.content


def test_a_streamed_chat_is_the_whole_answer(client):
    common = {"max_tokens": 30, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = client.chat_completion(QUESTION, **common)
    stream = client.chat_completion(QUESTION, **common, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    parts = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert parts[0].delta.role == "assistant"
    assert "".join(part.delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[-1].finish_reason == whole.choices[0].finish_reason
    tokens = [token for part in parts if part.logprobs for token in part.logprobs.content]
    assert [token.logprob for token in tokens] == [
        token.logprob for token in whole.choices[0].logprobs.content
    ]
    assert all(len(token.top_logprobs) == 2 for token in tokens)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_chat_takes_a_schema(client):
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": SCHEMA, "strict": True},
    }
    answer = client.chat_completion(
        QUESTION, response_format=response_format, max_tokens=500, temperature=0
    )
    check_person(answer.choices[0].message.content)
    chunks = client.chat_completion(
        QUESTION, response_format={"type": "json_object"}, max_tokens=200, stream=True, temperature=0
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).startswith(
        "{"
    )


def test_chat_samples_as_asked(client):
    common = {"max_tokens": 20, "temperature": 2.5, "seed": 5, "top_p": 0.99}
    first = client.chat_completion(QUESTION, **common).choices[0].message.content
    assert first == client.chat_completion(QUESTION, **common).choices[0].message.content
    other = client.chat_completion(QUESTION, **{**common, "seed": 6}).choices[0].message.content
    assert first != other
    stopped = client.chat_completion(QUESTION, **common, stop=[first[3:5]]).choices[0]
    assert stopped.message.content == first[: first.index(first[3:5])]
    assert stopped.finish_reason == "stop"
    both = client.chat_completion(QUESTION, n=2, **common).choices
    assert [choice.index for choice in both] == [0, 1]


@pytest.mark.tools
@pytest.mark.parametrize("choice", ["required", {"function": {"name": "weather"}}])
def test_a_tool_is_called(client, choice):
    answer = client.chat_completion(
        QUESTION, tools=[TOOL], tool_choice=choice, max_tokens=500, temperature=0
    )
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather" and call.id and "city" in call.function.arguments
    stream = client.chat_completion(
        QUESTION, tools=[TOOL], tool_choice=choice, max_tokens=500, temperature=0, stream=True
    )
    deltas = [delta for chunk in stream for delta in chunk.choices[0].delta.tool_calls or []]
    assert "".join(delta.function.arguments or "" for delta in deltas) == call.function.arguments


@pytest.mark.tools
def test_no_tool_is_called_where_none_may_be(client):
    answer = client.chat_completion(QUESTION, tools=[TOOL], tool_choice="none", max_tokens=20)
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls


def test_the_server_tells_of_itself(server, model):
    client = InferenceClient(model=server.url, provider="hf-inference")
    assert client.health_check()
    info = client.get_endpoint_info()
    assert info["model_id"] == model and info["max_total_tokens"] > 0


def test_the_async_client(server):
    async def ask():
        async with AsyncInferenceClient(model=server.url) as client:
            whole, chat = await asyncio.gather(
                client.text_generation(STORY, max_new_tokens=20, return_full_text=False),
                client.chat_completion(QUESTION, max_tokens=20, temperature=0),
            )
            stream = await client.text_generation(STORY, max_new_tokens=20, stream=True)
            assert "".join([part async for part in stream]) == whole
            stream = await client.chat_completion(QUESTION, max_tokens=20, temperature=0, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            assert "".join(parts) == chat.choices[0].message.content
            with pytest.raises(ValidationError, match="top_p"):
                await client.text_generation(STORY, top_p=7.0)

    asyncio.run(ask())


def test_a_key(keyed):
    assert InferenceClient(model=keyed.url, token=KEY).text_generation(STORY, max_new_tokens=2)
    assert InferenceClient(base_url=keyed.v1, api_key=KEY).chat_completion(QUESTION, max_tokens=2)
    for client in [InferenceClient(model=keyed.url), InferenceClient(model=keyed.url, token="wrong")]:
        for ask in [client.text_generation, client.chat_completion]:
            with pytest.raises((HfHubHTTPError, TextGenerationError)) as refusal:
                ask(STORY if ask == client.text_generation else QUESTION)
            error = refusal.value if isinstance(refusal.value, HfHubHTTPError) else refusal.value.__cause__
            assert error.response.status_code == 401


def test_what_breaks_a_rule(client):
    with pytest.raises(ValidationError, match="`temperature` must be strictly positive"):
        client.text_generation(STORY, temperature=-1.0)
    with pytest.raises(ValidationError, match="`top_n_tokens`"):
        client.text_generation(STORY, top_n_tokens=50, stream=True, details=True)
    with pytest.raises(ValidationError, match="grammar"):
        client.text_generation(STORY, grammar={"type": "regex", "value": "("})
    with pytest.raises(HfHubHTTPError, match="`top_p` must be") as refusal:
        client.chat_completion(QUESTION, top_p=7.0)
    assert refusal.value.response.status_code == 422


def test_an_adapter_or_model_that_is_not_there(client, server):
    with pytest.raises(TextGenerationError, match="The adapter nobody is not loaded") as refusal:
        client.text_generation(STORY, adapter_id="nobody")
    assert refusal.value.__cause__.response.status_code == 404
    with pytest.raises(TextGenerationError) as refusal:
        InferenceClient(model=f"{server.url}/models/nobody/nothing").text_generation(STORY)
    assert refusal.value.__cause__.response.status_code == 404
    assert InferenceClient(model=f"{server.url}/models/lockstep/demo").text_generation(
        STORY, max_new_tokens=2
    )


def test_a_full_server(full):
    client = InferenceClient(model=full.url)
    with pytest.raises(OverloadedError, match="Model is overloaded") as refusal:
        client.text_generation(STORY)
    assert int(refusal.value.__cause__.response.headers["retry-after"]) >= 1
    with pytest.raises(OverloadedError):
        client.text_generation(STORY, stream=True)
    with pytest.raises(HfHubHTTPError, match="overloaded") as refusal:
        client.chat_completion(QUESTION)
    assert refusal.value.response.status_code == 429


def test_a_model_that_loads(loading):
    client = InferenceClient(model=loading.url, timeout=60)
    for ask in [
        lambda: client.text_generation(STORY),
        lambda: client.chat_completion(QUESTION, stream=True),
    ]:
        with pytest.raises((UnknownError, HfHubHTTPError), match="currently loading") as refusal:
            ask()
        error = refusal.value if isinstance(refusal.value, HfHubHTTPError) else refusal.value.__cause__
        assert error.response.status_code == 503 and error.response.json()["estimated_time"] > 0


def test_an_error_inside_a_stream(server):
    client = InferenceClient(model=server.url, headers={"x-request-id": "hub-stream"})
    stream = client.text_generation(STORY, grammar=LONG, stream=True)
    next(stream)
    with server.frozen():
        server.cancel("hub-stream")
        with pytest.raises(UnknownError, match="cancelled"):
            list(stream)
    client = InferenceClient(model=server.url, headers={"x-request-id": "hub-chat"})
    chunks = client.chat_completion(QUESTION, extra_body={"grammar": LONG}, stream=True)
    next(chunks)
    with server.frozen():
        server.cancel("hub-chat")
        with pytest.raises(UnknownError, match="cancelled"):
            list(chunks)
