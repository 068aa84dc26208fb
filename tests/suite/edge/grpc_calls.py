"""A server and a client of gRPC, with messages of plain bytes.

    grpc_calls.py serve                   prints its port
    grpc_calls.py call PORT               calls of all kinds, for the host grpc.localhost
    grpc_calls.py refused PORT HOST       prints the code and the message of an error
"""

import os
import queue
import sys
import threading
from concurrent import futures

import grpc

cancelled = threading.Event()


def unary(request, context):
    context.set_trailing_metadata((("x-end", "unary"),))
    seen = dict(context.invocation_metadata())
    return b"%d bytes for %s from %s" % (len(request), seen["x-word"].encode(), seen["x-forwarded-for"].encode())


def big(request, context):
    return request


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def talk(requests, context):
    for request in requests:
        yield b"you said " + request


def fail(request, context):
    context.set_trailing_metadata((("x-end", "failed"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "there is no %r \u00fc" % request.decode())


def hang(request, context):
    context.add_callback(cancelled.set)
    cancelled.wait(30)
    return b""


def was_cancelled(request, context):
    return b"yes" if cancelled.wait(30) else b"no"


def serve():
    one, many, both = (
        grpc.unary_unary_rpc_method_handler,
        grpc.unary_stream_rpc_method_handler,
        grpc.stream_stream_rpc_method_handler,
    )
    methods = {
        "Unary": one(unary), "Big": one(big), "Count": many(count), "Talk": both(talk), "Fail": one(fail),
        "Hang": one(hang), "WasCancelled": one(was_cancelled),
    }
    limits = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    server = grpc.server(futures.ThreadPoolExecutor(16), options=limits)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", methods),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


def channel(port, host):
    options = [
        ("grpc.default_authority", host),
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.max_send_message_length", 64 << 20),
    ]
    return grpc.insecure_channel("127.0.0.1:" + port, options=options)


def call(port):
    with channel(port, "grpc.localhost") as open_channel:
        # Unary, with metadata both ways.
        answer, over = open_channel.unary_unary("/test.Test/Unary").with_call(
            b"x" * 100, metadata=(("x-word", "hello"),), timeout=30)
        assert answer == b"100 bytes for hello from 127.0.0.1", answer
        assert ("x-end", "unary") in [tuple(one) for one in over.trailing_metadata()], over.trailing_metadata()
        # More than any window.
        message = os.urandom(20 << 20)
        assert open_channel.unary_unary("/test.Test/Big")(message, timeout=60) == message
        # Streams.
        counted = list(open_channel.unary_stream("/test.Test/Count")(b"1000", timeout=60))
        assert counted == [str(number).encode() for number in range(1000)], len(counted)
        said = queue.Queue()
        heard = open_channel.stream_stream("/test.Test/Talk")(iter(said.get, None), timeout=60)
        for word in (b"one", b"two", b"three"):
            said.put(word)
            assert next(heard) == b"you said " + word
        said.put(None)
        assert list(heard) == [] and heard.code() == grpc.StatusCode.OK
        # An error is the server's own.
        try:
            open_channel.unary_unary("/test.Test/Fail")(b"cat", timeout=30)
            raise AssertionError("it does not fail")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, error
            assert error.details() == "there is no 'cat' \u00fc", error.details()
            assert ("x-end", "failed") in [tuple(one) for one in error.trailing_metadata()]
        # Whoever gives up is given up.
        try:
            open_channel.unary_unary("/test.Test/Hang")(b"", timeout=0.5)
            raise AssertionError("it answers")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        assert open_channel.unary_unary("/test.Test/WasCancelled")(b"", timeout=60) == b"yes"
        # Many at once.
        many = open_channel.unary_unary("/test.Test/Big")
        calls = [many.future(str(number).encode(), timeout=60) for number in range(500)]
        assert [one.result() for one in calls] == [str(number).encode() for number in range(500)]
    print("all calls were answered")


def refused(port, host):
    with channel(port, host) as open_channel:
        try:
            print(open_channel.unary_unary("/test.Test/Unary")(b"", timeout=30))
        except grpc.RpcError as error:
            print(error.code().name, error.details())


if __name__ == "__main__":
    {"serve": serve, "call": call, "refused": refused}[sys.argv[1]](*sys.argv[2:])
