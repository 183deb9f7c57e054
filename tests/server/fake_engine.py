"""A fake engine process: speaks the real frames over the real socket, but has no model and no scheduler.

Each answer repeats its prompt token by token, one token an iteration, until `max_tokens`, an end token, or an abort.
A resumed one goes on where it was. What happens is written line by line to the file `--log` (a pipe in the tests).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from array import array
from pathlib import Path

import msgspec
import zmq

from orcinus.core.plan import TokenLogprobs
from orcinus.core.progress import Progress
from orcinus.core.quarantine import Quarantine, Suspects
from orcinus.core.request import FinishReason, Request, unpack_tokens
from orcinus.engine.beat import Beat
from orcinus.engine.channel import Channel
from orcinus.engine.messages import (
    Abort,
    Add,
    EngineDescription,
    Failed,
    FromEngine,
    FrontGone,
    OrderToEngine,
    Outputs,
    Shutdown,
    ToEngine,
)

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
        self.request, self.index = request, index
        self.count = len(request.resumed[index]) // 4 if request.resumed else 0
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
        prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        if params.prompt_logprobs is not None and self.index == 0 and self.count == 1:
            prompt_logprobs = tuple(
                TokenLogprobs(
                    -0.25 * place,
                    2,
                    tuple(70 + i for i in range(params.prompt_logprobs)),
                    (-0.1,) * params.prompt_logprobs,
                )
                for place in range(1, len(self.prompt))
            )
        ended = FinishReason.STOP if stopped else None
        if ended is None and self.count >= self.request.max_tokens:
            ended = FinishReason.LENGTH
        return Progress(
            self.request.request_id,
            self.index,
            tokens=(token,),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=ended,
            stop_token=token if stopped else None,
        )


class FakeEngine:
    """The loop: take messages, make a token for every answer, send them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.control = Channel.inherited(options.control, msgspec.msgpack.Decoder(OrderToEngine))
        self.beat = Beat(Path(options.beat))
        self.quarantine = Quarantine(msgspec.json.decode(options.suspects, type=Suspects))
        self.socket = zmq.Context().socket(zmq.ROUTER)
        self.socket.bind(f"ipc://{options.socket}")
        self.fronts: dict[str, bytes] = {}
        self.encoder = msgspec.msgpack.Encoder()
        self.decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
        self.answers: list[Answer] = []
        self.iterations = 0
        self.log = open(options.log, "w", buffering=1) if options.log else sys.stderr  # noqa: SIM115

    def send(self, message: FromEngine) -> None:
        """To each front end what is for it."""
        for front in {self.fronts[one.request_id] for one in message.progress}:
            own = tuple(one for one in message.progress if self.fronts[one.request_id] == front)
            self.socket.send_multipart((front, self.encoder.encode(msgspec.structs.replace(message, progress=own))))

    def run(self) -> None:
        """Until Shutdown, or until `--crash-after` iterations have run."""
        labels = tuple(self.options.labels.split(",")) if self.options.labels else ()
        self.control.send(msgspec.structs.replace(DESCRIPTION, labels=labels, generates=not labels))
        if self.options.crash_when_ready:
            os._exit(9)
        # One millisecond an iteration while there is work; without work, wait for some.
        while self.take_messages(1 if self.answers else None):
            if self.answers:
                self.iterate()

    def take_messages(self, wait_ms: int | None) -> bool:
        """Everything in the inbox. False when told to leave."""
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.control.socket, zmq.POLLIN)
        while ready := dict(poller.poll(wait_ms)):
            wait_ms = 0
            self.beat.beat()
            if self.control.socket.fileno() in ready and not self.obey():
                return False
            if self.socket in ready:
                front, frame = self.socket.recv_multipart()
                self.take(front, self.decoder.decode(frame))
        return True

    def obey(self) -> bool:
        """The supervisor's orders; False when it is time to leave."""
        try:
            order = self.control.take()
        except EOFError:
            return False
        if isinstance(order, Shutdown):
            print("shutdown", file=self.log)
        elif isinstance(order, FrontGone):
            print(f"front gone {order.identity.decode()}", file=self.log)
            self.answers.clear()
        return not isinstance(order, Shutdown)

    def take(self, front: bytes, message: ToEngine) -> None:
        """One message of a front end."""
        if isinstance(message, Add):
            self.fronts[message.request.request_id] = front
            if self.quarantine.refuses(message.request.request_id):
                self.send(Outputs((failure(message.request, "request_crashes_engine"),)))
            elif self.quarantine.is_active:
                self.quarantine.hold(message.request)
            else:
                self.add(message.request)
            for request in self.quarantine.due():
                self.add(request)
        elif isinstance(message, Abort):
            self.abort(message)

    def add(self, request: Request) -> None:
        """Start its answers; the prompt of a single 7 asks for a failure, that of a single 9 for a bad frame."""
        print(f"add {request.request_id} {request.params.seed} {request.max_tokens}", file=self.log)
        if list(unpack_tokens(request.prompt)) == [9]:
            self.socket.send_multipart((self.fronts[request.request_id], b"no frame of ours"))
        if list(unpack_tokens(request.prompt)) == [7]:
            self.send(Outputs((failure(request, "numerical_error"),)))
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
        self.beat.running(sorted({answer.request.request_id for answer in self.answers}))
        if any(list(answer.prompt) == [5] for answer in self.answers):
            os._exit(9)
        if (
            self.options.hang_after
            and self.iterations == self.options.hang_after
            and not Path(self.options.once).exists()
        ):
            Path(self.options.once).touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        progress = tuple(answer.step() for answer in self.answers)
        for one in progress:
            self.quarantine.settle(one.request_id)
        for request in self.quarantine.due():
            self.add(request)
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


def failure(request: Request, code: str) -> Progress:
    """The end of a request whose logits aren't finite, or whatever `code` says."""
    message = "the logits of this request are not finite"
    return Progress(request.request_id, 0, finish_reason=FinishReason.ERROR, error_code=code, error_message=message)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--beat", required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--suspects", default="{}")
    parser.add_argument("--crash-when-ready", action="store_true")
    parser.add_argument("--hang-after", type=int, default=0)
    parser.add_argument("--once", default="", help="a file that says that it has hung once")
    parser.add_argument("--log")
    parser.add_argument("--crash-after", type=int, default=0)
    parser.add_argument("--labels", default="", help="of a classifier; then nothing is generated")
    parser.add_argument("--fail", help="message to fail with before being ready")
    parser.add_argument("--fail-while", type=Path, help="only while this file is there")
    parser.add_argument("--exit-code", type=int, default=1)
    options = parser.parse_args()
    if options.fail_while and not options.fail_while.exists():
        options.fail = None
    engine = FakeEngine(options)
    if options.fail:
        engine.control.send(Failed(options.fail, options.exit_code))
    else:
        engine.run()
    engine.socket.context.destroy(linger=1000)
    sys.exit(options.exit_code if options.fail else 0)


if __name__ == "__main__":
    main()
