import json
import math
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import torch

from sleep_pipeline.generation.likelihood import reply_log_probs
from sleep_pipeline.seeding.judges import EmbeddingJudge, EndpointJudge, EntailmentJudge, LikelihoodJudge, Trio

TRIOS: list[Trio] = [
    ("Where?", "In Osk.", "At Osk, they say."),
    ("Where?", "In Osk.", "Nowhere that anybody could name for certain."),
    ("", "A red house stands there.", "There stands a red house."),
]


def test_reply_likelihoods_are_those_of_single_unpadded_conversations(tiny_model: Any, tiny_tokenizer: Any) -> None:
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in (("Who?", "Mira."), ("Where does she live now?", "In Lower Geska by the river."))
    ]
    found = reply_log_probs(tiny_model, tiny_tokenizer, conversations)
    # With room for the logits of one conversation at a time.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sleep_pipeline.generation.reading.LOGITS", 1)
        for one, other in zip(found, reply_log_probs(tiny_model, tiny_tokenizer, conversations), strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    for messages, values in zip(conversations, found, strict=True):
        ids = tiny_tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        at = len(
            tiny_tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        )
        with torch.no_grad():
            log_probs = tiny_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        wanted = [float(log_probs[i - 1, ids[i]]) for i in range(at, len(ids))]
        assert values == pytest.approx(wanted, abs=1e-5)


def test_the_likelihood_judge_takes_the_worse_of_both_directions(tiny_model: Any, tiny_tokenizer: Any) -> None:
    judge = LikelihoodJudge(tiny_model, tiny_tokenizer)
    scores = judge.scores(TRIOS)
    assert scores == pytest.approx(judge.scores([(q, b, a) for q, a, b in TRIOS]))
    judge.threshold = sorted(scores)[1]
    assert sum(judge.agree(TRIOS)) == 2
    question, one, other = TRIOS[0]

    def mean(*turns: dict[str, str]) -> float:
        (found,) = reply_log_probs(tiny_model, tiny_tokenizer, [turns])
        return sum(found) / len(found)

    ways = []
    for known, said in ((one, other), (other, one)):
        asked = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        ways.append(mean({"role": "system", "content": f"{question} {known}"}, *asked) - mean(*asked))
    assert scores[0] == pytest.approx(min(ways), abs=1e-4)


def test_calibration_finds_the_threshold_that_separates(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = LikelihoodJudge(None, None)  # type: ignore[arg-type]
    values = {"a": -0.1, "b": -0.3, "c": -0.9, "d": -0.2, "e": -2.0}
    monkeypatch.setattr(judge, "scores", lambda trios: [values[trio[1]] for trio in trios])
    trios = [("", name, "") for name in values]
    calibration = judge.calibrate(trios, [True, True, False, False, False])
    assert (calibration.threshold, calibration.sensitivity) == (-0.3, 1.0)
    assert calibration.specificity == pytest.approx(2 / 3)
    assert judge.measure(trios[2:4], [True, False]).sensitivity == 0.0
    with pytest.raises(ValueError, match="0 of 5 pairs"):
        judge.calibrate(trios, [False] * 5)


@pytest.fixture(scope="module")
def classifier(tiny_tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=3,
        pad_token_id=tiny_tokenizer.pad_token_id, id2label={0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"},
    )  # fmt: skip
    return LlamaForSequenceClassification(config).eval()


def test_the_entailment_judge_asks_both_ways(classifier: Any, tiny_tokenizer: Any) -> None:
    def probability(premise: str, hypothesis: str) -> float:
        with torch.no_grad():
            logits = classifier(**tiny_tokenizer(premise, hypothesis, return_tensors="pt")).logits
        return float(logits.softmax(-1)[0, 2])

    both = [
        min(probability(f"{q} {a}".strip(), f"{q} {b}".strip()), probability(f"{q} {b}".strip(), f"{q} {a}".strip()))
        for q, a, b in TRIOS
    ]
    for threshold in [*(value - 1e-4 for value in both), *(value + 1e-4 for value in both)]:
        judge = EntailmentJudge(classifier, tiny_tokenizer, threshold, batch_size=2)
        assert judge.agree(TRIOS) == [value >= threshold for value in both]


def test_the_entailment_judge_refuses_a_model_of_something_else(classifier: Any, tiny_tokenizer: Any) -> None:
    other = types.SimpleNamespace(config=types.SimpleNamespace(id2label={0: "happy", 1: "sad"}))
    with pytest.raises(ValueError, match=r"\['happy', 'sad'\], and not one that is entailment"):
        EntailmentJudge(other, tiny_tokenizer)  # type: ignore[arg-type]


def test_the_embedding_judge_compares_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"north": [0.0, 1.0], "up": [0.6, 0.8], "east": [1.0, 0.0]}
    asked: dict[str, Any] = {}

    class SentenceTransformer:
        def __init__(self, name: str, **options: Any) -> None:
            asked.update(options, name=name)

        def encode(self, texts: list[str], **options: Any) -> torch.Tensor:
            assert options["normalize_embeddings"] and options["convert_to_tensor"]
            return torch.tensor([vectors[text] for text in texts])

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    judge = EmbeddingJudge("some/folder", threshold=0.7)
    assert judge.agree([("", "north", "up"), ("", "east", "up"), ("", "east", "north")]) == [True, False, False]
    assert asked == {"name": "some/folder", "local_files_only": True, "trust_remote_code": False}


def test_the_embedding_judge_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"sleep-pipeline\[judges\]"):
        EmbeddingJudge("some/folder")


@pytest.fixture
def endpoint() -> Iterator[Any]:
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, dict(self.headers), body))
            text = body["messages"][0]["content"]
            told = text.split("Answer 1:")[1]
            word = "perhaps" if "vague" in text else "Yes, both mean it; no doubt" if "same" in told else "**No**, they"
            reply = json.dumps({"choices": [{"message": {"content": word}}]}).encode()
            self.send_response(500 if "broken" in text else 200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield types.SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/v1", seen=seen)
    server.shutdown()
    server.server_close()


def test_the_endpoint_judge_asks_and_reads_yes_and_no(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = EndpointJudge(endpoint.url, "big", "JUDGE_KEY")
    assert judge.agree([("Who?", "same", "same thing"), ("", "one", "another")]) == [True, False]
    path, headers, body = endpoint.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "big" and body["temperature"] == 0
    assert "Question: Who?" in body["messages"][0]["content"]
    assert "Question:" not in endpoint.seen[1][2]["messages"][0]["content"]


@pytest.mark.parametrize(("answer", "message"), [("vague", "perhaps"), ("broken", "500")])
def test_an_endpoint_that_does_not_judge_is_an_error(endpoint: Any, answer: str, message: str) -> None:
    with pytest.raises(ConnectionError, match=message):
        EndpointJudge(endpoint.url, "big").agree([("", answer, "x")])


def test_an_endpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9/v1/chat/completions"):
        EndpointJudge("http://127.0.0.1:9/v1", "big", timeout=2).agree([("", "a", "b")])
    with pytest.raises(ValueError, match="starts with http"):
        EndpointJudge("ftp://x", "big")


def test_what_cannot_be_a_reply_agrees_with_nothing_and_the_others_are_judged(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sleep_pipeline.generation import likelihood

    encode = likelihood.encode_reply

    def refuses(tokenizer: Any, messages: Any) -> Any:
        if messages[-1]["content"] == "odd":
            raise ValueError("cannot be told from its prompt")
        return encode(tokenizer, messages)

    monkeypatch.setattr(likelihood, "encode_reply", refuses)
    judge = LikelihoodJudge(tiny_model, tiny_tokenizer)
    odd, plain = judge.scores([("Where?", "odd", "in Osk"), ("Where?", " in Osk\n", "at Osk")])
    assert odd == -math.inf
    assert plain == judge.scores([("Where?", "in Osk", "at Osk")])[0] > -math.inf
