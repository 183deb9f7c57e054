"""A fake engine process: speaks the real frames over the real socket, but has no model and no scheduler.

Each answer repeats its prompt token by token, one token an iteration, until `max_tokens`, an end token, or an abort.
What happens to it is written line by line to the file `--log` (a pipe in the tests).
"""

from __future__ import annotations

import argparse
import os
import sys
from array import array

import msgspec
import zmq

from orcinus.core.plan import TokenLogprobs
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request, unpack_tokens
from orcinus.engine.messages import Abort, Add, EngineDescription, Failed, FromEngine, Outputs, ToEngine

DESCRIPTION = EngineDescription(
    model="/models/fake",
    architecture="FakeForCausalLM",
    num_parameters=0,
    dtype="float32",
    device="cpu",
    fingerprint="fake",
    weights_revision="fake",
    vocab_size=512,
    eos_token_ids=(2,),
    max_sequence_tokens=4096,
    max_request_tokens=8192,
    max_batch_size=16,
    max_batch_tokens=512,
    hidden_size=4,
)


class Answer:
    """One answer on its way."""

    def __init__(self, request: Request, index: int) -> None:
        self.request, self.index, self.count = request, index, 0
        self.prompt = unpack_tokens(request.prompt)

    def step(self) -> Progress:
        """The next token, with log-probabilities that tell the position."""
        token = self.prompt[self.count % len(self.prompt)]
        self.count += 1
        params = self.request.params
        top = range(params.logprobs or 0)
        logprobs = (
            ()
            if params.logprobs is None
            else (
                TokenLogprobs(
                    -0.5 * self.count, 1, tuple(65 + i for i in top), tuple(-0.5 * (self.count + i) for i in top)
                ),
            )
        )
        stopped = token in self.request.end_token_ids and self.count > params.min_tokens
        ended = FinishReason.STOP if stopped else None
        if ended is None and self.count >= self.request.max_tokens:
            ended = FinishReason.LENGTH
        return Progress(
            self.request.request_id,
            self.index,
            tokens=(token,),
            logprobs=logprobs,
            finish_reason=ended,
            stop_token=token if stopped else None,
        )


class FakeEngine:
    """The loop: take messages, make a token for every answer, send them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.socket = zmq.Context().socket(zmq.PAIR)
        self.socket.connect(f"ipc://{options.socket}")
        self.encoder = msgspec.msgpack.Encoder()
        self.decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
        self.answers: list[Answer] = []
        self.iterations = 0
        self.log = open(options.log, "w", buffering=1) if options.log else sys.stderr  # noqa: SIM115

    def send(self, message: FromEngine) -> None:
        """To the client."""
        self.socket.send(self.encoder.encode(message))

    def run(self) -> None:
        """Until Shutdown, or until `--crash-after` iterations have run."""
        labels = tuple(self.options.labels.split(",")) if self.options.labels else ()
        self.send(msgspec.structs.replace(DESCRIPTION, labels=labels, generates=not labels))
        # One millisecond an iteration while there is work; without work, wait for some.
        while self.take_messages(1 if self.answers else None):
            if self.answers:
                self.iterate()

    def take_messages(self, wait_ms: int | None) -> bool:
        """Everything in the inbox. False when told to leave."""
        while self.socket.poll(wait_ms):
            wait_ms = 0
            message = self.decoder.decode(self.socket.recv())
            if isinstance(message, Add):
                self.add(message.request)
            elif isinstance(message, Abort):
                self.abort(message)
            else:
                print("shutdown", file=self.log)
                return False
        return True

    def add(self, request: Request) -> None:
        """Start its answers; the prompt of a single 7 asks for a failure, that of a single 9 for a bad frame."""
        print(f"add {request.request_id} {request.params.seed} {request.max_tokens}", file=self.log)
        if list(unpack_tokens(request.prompt)) == [9]:
            self.socket.send(b"no frame of ours")
        if list(unpack_tokens(request.prompt)) == [7]:
            failure = Progress(
                request.request_id,
                0,
                finish_reason=FinishReason.ERROR,
                error_code="numerical_error",
                error_message="the logits of this request are not finite",
            )
            self.send(Outputs((failure,)))
            return
        if request.pooling is not None:
            self.send(Outputs((self.vector(request),)))
            return
        self.answers += [Answer(request, index) for index in range(request.params.n)]

    def vector(self, request: Request) -> Progress:
        """An embedding of the first tokens, or as scores their number and the second segment's beginning."""
        assert request.pooling is not None
        tokens = unpack_tokens(request.prompt)
        numbers = [len(tokens), request.pooling.second_segment, 0, 0] if request.pooling.classify else [*tokens[:3], 1]
        wanted = len(self.options.labels.split(",")) if request.pooling.classify else 4
        pooled = array("f", (numbers + [0] * 4)[:wanted]).tobytes()
        return Progress(request.request_id, 0, finish_reason=FinishReason.STOP, pooled=pooled)

    def abort(self, abort: Abort) -> None:
        """End one answer or all of a request, and say so."""
        print(f"abort {abort.request_id} {abort.index} {abort.cause.value}", file=self.log)
        ended = [
            answer
            for answer in self.answers
            if answer.request.request_id == abort.request_id and abort.index in (None, answer.index)
        ]
        self.answers = [answer for answer in self.answers if answer not in ended]
        progress = tuple(Progress(abort.request_id, answer.index, finish_reason=abort.cause) for answer in ended)
        self.send(Outputs(progress))

    def iterate(self) -> None:
        """One token for every answer."""
        progress = tuple(answer.step() for answer in self.answers)
        ended = {(one.request_id, one.index) for one in progress if one.finish_reason is not None}
        self.answers = [a for a in self.answers if (a.request.request_id, a.index) not in ended]
        self.iterations += 1
        self.send(
            Outputs(
                progress,
                num_running=len(self.answers),
                free_blocks=75,
                total_blocks=100,
                iterations=self.iterations,
            )
        )
        if self.iterations == self.options.crash_after:
            os._exit(9)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--log")
    parser.add_argument("--crash-after", type=int, default=0)
    parser.add_argument("--labels", default="", help="of a classifier; then nothing is generated")
    parser.add_argument("--fail", help="message to fail with before being ready")
    parser.add_argument("--exit-code", type=int, default=1)
    options = parser.parse_args()
    engine = FakeEngine(options)
    if options.fail:
        engine.send(Failed(options.fail, options.exit_code))
    else:
        engine.run()
    engine.socket.close()
    engine.socket.context.term()
    sys.exit(options.exit_code if options.fail else 0)


if __name__ == "__main__":
    main()
