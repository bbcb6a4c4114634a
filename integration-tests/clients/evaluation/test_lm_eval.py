"""lm-eval through /v1/completions, with the server's own tokenizer and tasks that need no download."""

import json
import os

import pytest

from cases import KEY, STORY

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
import lm_eval
from lm_eval.tasks import TaskManager

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
"""
RANKED = """
doc_to_choice: ["time", "zebra quantum"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
CONTINUED = """
doc_to_target: "{{target}}"
generation_kwargs: {until: ["."], max_gen_toks: 40, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Runs one task over documents, and gives its results and samples."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))

    def evaluate(server, name, kind, rest, documents, key="none", **arguments):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in documents))
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=data, kind=kind) + rest)
        settings = {
            "model": "lockstep/demo",
            "base_url": f"{server.v1}/completions",
            "max_length": 2048,
            "max_retries": 1,
            "auth_token": key,
            **arguments,
        }
        found = lm_eval.simple_evaluate(
            model="local-completions",
            model_args=settings,
            tasks=[name],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
        return found["results"][name], found["samples"][name]

    return evaluate


def likelihood(server, text, following):
    """The log-probability of a text after another, as the native route tells it."""
    parameters = {"decoder_input_details": True, "max_new_tokens": 1}
    _, answer = server.post("/generate", {"inputs": text + following, "parameters": parameters})
    _, first = server.post("/generate", {"inputs": text, "parameters": parameters})
    prompt = len(first["details"]["prefill"])
    return sum(token["logprob"] for token in answer["details"]["prefill"][prompt:])


@pytest.mark.parametrize("arguments", [{}, {"batch_size": 2}, {"num_concurrent": 3}])
def test_choices_are_ranked_by_their_likelihood(evaluate, server, arguments):
    documents = [{"text": "Once upon a"}, {"text": "Let us play another"}, {"text": "It was a long"}]
    results, samples = evaluate(server, "ranked", "multiple_choice", RANKED, documents, **arguments)
    assert results["acc,none"] > 0.6
    for sample in samples:
        told = [float(each[0]) for each in sample["filtered_resps"]]
        expected = [likelihood(server, sample["doc"]["text"], each) for each in [" time", " zebra quantum"]]
        assert told == pytest.approx(expected, abs=1e-4)


def test_texts_are_continued_until_a_stop(evaluate, server):
    parameters = {"max_new_tokens": 40, "stop": ["."]}
    _, answer = server.post("/generate", {"inputs": STORY, "parameters": parameters})
    target = answer["generated_text"].removesuffix(".")
    documents = [{"text": STORY, "target": target}]
    results, samples = evaluate(server, "continued", "generate_until", CONTINUED, documents)
    assert results["exact_match,none"] == 1, (samples[0]["filtered_resps"], target)


def test_a_whole_text_is_weighed(evaluate, server):
    likely, unlikely = STORY + ", there was a boy.", "Zebra quantum ledger fjord."
    perplexity = [
        evaluate(server, "rolling", "loglikelihood_rolling", ROLLING, [{"text": text}])[0][
            "word_perplexity,none"
        ]
        for text in [likely, unlikely]
    ]
    assert 1 < perplexity[0] < perplexity[1]


def test_a_key(evaluate, keyed):
    documents = [{"text": "Once upon a"}]
    results, _ = evaluate(keyed, "ranked", "multiple_choice", RANKED, documents, key=KEY)
    assert results["acc,none"] == 1
    with pytest.raises(RuntimeError, match="401 Client Error"):
        evaluate(
            keyed, "ranked", "multiple_choice", RANKED, documents, key="wrong", tokenizer_backend="remote"
        )
