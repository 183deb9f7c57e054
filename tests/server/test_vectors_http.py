"""Embeddings, classes, scores and rankings over HTTP. The fake engine makes vectors of token ids, known beforehand."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from served import Served, serve_fake
from tokenizer_files import write_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A classifier of one label."""
    with serve_fake(write_tokenizer(tmp_path_factory.mktemp("reranker")), "--labels", "relevant") as server:
        yield server


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A classifier of three labels."""
    with serve_fake(write_tokenizer(tmp_path_factory.mktemp("classifier")), "--labels", "long,pair,never") as server:
        yield server


def unit(*numbers: float) -> np.ndarray:
    vector = np.array(numbers, dtype=np.float64)
    return vector / np.linalg.norm(vector)


def post(server: Served, path: str, **body: object) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


def test_embeddings_are_of_length_one_and_in_the_order_of_the_inputs(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="fake", input=[[3, 4, 5, 6], [9, 8, 7]], encoding_format="float")
    assert [data.index for data in answer.data] == [0, 1]
    np.testing.assert_allclose(answer.data[0].embedding, unit(3, 4, 5, 1), atol=1e-6)
    np.testing.assert_allclose(answer.data[1].embedding, unit(9, 8, 7, 1), atol=1e-6)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)


def test_base64_holds_the_same_floats(served: Served, client: openai.OpenAI) -> None:
    plain = client.embeddings.create(model="fake", input="some text", encoding_format="float").data[0].embedding
    body = post(served, "/v1/embeddings", input="some text", encoding_format="base64").json()
    packed = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), dtype="<f4")
    assert np.array_equal(packed, np.array(plain, dtype=np.float32))
    # The SDK asks for base64 by itself and decodes it.
    assert client.embeddings.create(model="fake", input="some text").data[0].embedding == plain


def test_dimensions_cut_before_the_length_is_made_one(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="fake", input=[3, 4, 5], dimensions=2, encoding_format="float")
    np.testing.assert_allclose(answer.data[0].embedding, unit(3, 4), atol=1e-6)


def test_more_inputs_than_may_be_live_are_taken_in_turns(client: openai.OpenAI) -> None:
    """The server's bound on live requests is smaller than the bound on inputs."""
    answer = client.embeddings.create(model="fake", input=[[i, 1, 1] for i in range(100)], encoding_format="float")
    assert [round(data.embedding[0] / data.embedding[1]) for data in answer.data] == list(range(100))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": ["text", [1]]}, "input"),
        ({"input": [[1, 512]]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": [[1] * 4097]}, "input"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x", "dimensions": 5}, "dimensions"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "dimensions": "2"}, "dimensions"),
        ({"input": "x", "model": "other"}, "model"),
    ],
)
def test_bad_input_is_refused_by_name(served: Served, body: dict[str, object], param: str) -> None:
    answer = httpx.post(f"{served.url}/v1/embeddings", json=body, timeout=60)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param


def test_a_failed_input_fails_its_request_alone(served: Served) -> None:
    assert post(served, "/v1/embeddings", input=[[1, 2], [7]]).status_code == 500
    assert post(served, "/v1/embeddings", input=[[1, 2]]).status_code == 200


def test_classes_have_probabilities_and_a_likeliest_label(classifier: Served) -> None:
    answer = post(classifier, "/classify", input=[[1, 2], [1]]).json()
    weights = [math.exp(2), 1, 1]
    np.testing.assert_allclose(answer["data"][0]["probs"], [weight / sum(weights) for weight in weights])
    assert [data["label"] for data in answer["data"]] == ["long", "long"]
    assert answer["data"][0]["num_classes"] == 3
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_what_a_model_cannot_do_is_said(served: Served, classifier: Served) -> None:
    for server, path, body in (
        (served, "/classify", {"input": "x"}),
        (classifier, "/score", {"text_1": "a", "text_2": "b"}),
        (classifier, "/v1/completions", {"prompt": "x"}),
    ):
        answer = post(server, path, **body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unsupported_task"


def test_a_classifier_of_one_label_scores_pairs(reranker: Served) -> None:
    pairs = [("query", "short"), ("query", "much longer document")]
    answer = post(reranker, "/score", text_1="query", text_2=[second for _, second in pairs]).json()
    sizes = [len(reranker.tokenizer.encode_pair(*pair)[0]) for pair in pairs]
    expected = [1 / (1 + math.exp(-size)) for size in sizes]
    np.testing.assert_allclose([data["score"] for data in answer["data"]], expected)
    assert answer["usage"]["total_tokens"] == sum(sizes)


def test_a_ranking_is_best_first_and_cut_to_top_n(reranker: Served) -> None:
    documents = ["a", {"text": "a much longer document"}, "a document"]
    answer = post(reranker, "/v1/rerank", query="q", documents=documents, top_n=2).json()
    assert [result["index"] for result in answer["results"]] == [1, 2]
    assert answer["results"][0]["document"] == {"text": "a much longer document"}
    assert post(reranker, "/rerank", query="q", documents=[]).status_code == 400
    assert post(reranker, "/rerank", query="q", documents=["a"], top_n=-1).status_code == 400


def test_without_a_classifier_scores_are_cosines_of_embeddings(served: Served) -> None:
    answer = post(served, "/v1/score", text_1="the same", text_2=["the same", "another"]).json()
    first, second = (served.tokenizer.encode(text, add_special_tokens=True)[:3] for text in ("the same", "another"))
    scores = [data["score"] for data in answer["data"]]
    np.testing.assert_allclose(scores, [1, unit(*first, 1) @ unit(*second, 1)], atol=1e-6)
    assert post(served, "/score", text_1=["a", "b"], text_2=["a", "b", "c"]).status_code == 400


def test_vectors_need_text_only_where_text_is_given(tmp_path: Path) -> None:
    """A checkpoint without a tokenizer embeds token ids."""
    (tmp_path / "bare").mkdir()
    with serve_fake(tmp_path / "bare") as server:
        assert post(server, "/v1/embeddings", input=[1, 2, 3]).status_code == 200
        assert post(server, "/v1/embeddings", input="text").status_code == 400
