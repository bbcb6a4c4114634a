"""The reference server's own client, text-generation."""

import asyncio

import pytest
from text_generation import AsyncClient, Client
from text_generation.errors import (
    NotFoundError,
    OverloadedError,
    UnknownError,
    ValidationError,
)

from cases import KEY, LONG, QUESTION, SCHEMA, STORY, check_person


@pytest.fixture
def client(server):
    return Client(server.url, timeout=60)


def test_generate(client):
    answer = client.generate(STORY, max_new_tokens=12, decoder_input_details=True)
    details = answer.details
    assert (details.finish_reason.value, details.generated_tokens, details.seed) == ("length", 12, None)
    assert "".join(token.text for token in details.tokens) == answer.generated_text
    assert "".join(token.text for token in details.prefill).endswith(STORY)
    assert details.prefill[0].logprob is None and all(token.logprob <= 0 for token in details.prefill[1:])


def test_generate_with_all_its_parameters(client):
    parameters = {
        "do_sample": True,
        "max_new_tokens": 8,
        "best_of": 2,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "return_full_text": True,
        "stop_sequences": ["never to be seen"],
        "temperature": 0.9,
        "top_k": 20,
        "top_p": 0.95,
        "truncate": 3,
        "typical_p": 0.9,
        "top_n_tokens": 2,
    }
    answer = client.generate(STORY, **parameters)
    assert answer.generated_text.startswith(STORY)
    assert len(answer.details.best_of_sequences) == 1
    assert all(len(each) == 2 for each in answer.details.top_tokens)


def test_generate_stream_is_the_whole_answer(client):
    whole = client.generate(STORY, max_new_tokens=20)
    events = list(client.generate_stream(STORY, max_new_tokens=20, top_n_tokens=2))
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details.finish_reason.value == "length"
    assert all(len(event.top_tokens) == 2 for event in events)


def test_a_stop_sequence_and_a_seed(client):
    free = client.generate(STORY, max_new_tokens=40, do_sample=True, temperature=1.2, seed=9)
    assert free.details.seed == 9
    stop = free.generated_text[10:14]
    answer = client.generate(
        STORY, max_new_tokens=40, do_sample=True, temperature=1.2, seed=9, stop_sequences=[stop]
    )
    assert answer.generated_text == free.generated_text[: free.generated_text.index(stop) + len(stop)]
    assert answer.details.finish_reason.value == "stop_sequence"


@pytest.mark.parametrize(("kind", "value"), [("json", SCHEMA), ("regex", "[0-9]{4}")])
def test_a_grammar(client, kind, value):
    answer = client.generate("A person: ", max_new_tokens=500, grammar={"type": kind, "value": value})
    if kind == "json":
        check_person(answer.generated_text)
    else:
        assert answer.generated_text.isdigit() and len(answer.generated_text) == 4


def test_a_chat(client):
    # Streams of chats are beyond this client: it wants fields that no server sends.
    answer = client.chat(messages=QUESTION, max_tokens=12, seed=1)
    assert answer.choices[0].message.content and answer.usage["completion_tokens"] <= 12


def test_the_async_client(server):
    async def ask():
        client = AsyncClient(server.url, timeout=60)
        whole = await client.generate(STORY, max_new_tokens=20)
        events = [event async for event in client.generate_stream(STORY, max_new_tokens=20)]
        assert events[-1].generated_text == whole.generated_text
        assert (await client.chat(messages=QUESTION, max_tokens=4)).choices[0].message.content
        with pytest.raises(ValidationError):
            await client.generate(STORY, max_new_tokens=1_000_000)

    asyncio.run(ask())


def test_a_key(keyed):
    bearer = {"authorization": f"Bearer {KEY}"}
    assert Client(keyed.url, headers=bearer).generate(STORY, max_new_tokens=2).generated_text
    with pytest.raises(UnknownError, match="An API key is needed"):
        Client(keyed.url).generate(STORY)


def test_what_breaks_a_rule(client):
    with pytest.raises(ValidationError, match="`inputs` tokens"):
        client.generate(STORY, max_new_tokens=1_000_000)
    with pytest.raises(ValidationError):
        list(client.generate_stream(STORY, max_new_tokens=1_000_000))


def test_what_is_not_there(server):
    with pytest.raises((NotFoundError, UnknownError), match="not served"):
        Client(f"{server.url}/models/nobody").generate(STORY)


def test_a_full_server(full):
    with pytest.raises(OverloadedError):
        Client(full.url).generate(STORY)
    with pytest.raises(OverloadedError):
        list(Client(full.url).generate_stream(STORY))


def test_a_model_that_loads(loading):
    with pytest.raises(UnknownError, match="currently loading"):
        Client(loading.url).generate(STORY)


def test_an_error_inside_a_stream(server):
    client = Client(server.url, headers={"x-request-id": "old-stream"}, timeout=60)
    stream = client.generate_stream(STORY, max_new_tokens=1500, grammar=LONG)
    next(stream)
    with server.frozen():
        server.cancel("old-stream")
        with pytest.raises(UnknownError, match="cancelled"):
            list(stream)
