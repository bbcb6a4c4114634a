"""A real OTLP receiver gets one connected trace of a request: the router's spans and every rank's."""

import threading
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from lockstep_server import Server, wait_until

RANKS = 2
TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
PROMPT = "Once upon a time, there was a little dog named Rex."


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as a collector does."""

    def __init__(self):
        self.lock = threading.Lock()
        self.received = []
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.url = f"http://127.0.0.1:{port}"
        self.server.start()

    def Export(self, request, context):
        with self.lock:
            for source in request.resource_spans:
                who = {item.key: item.value.string_value for item in source.resource.attributes}
                for scope in source.scope_spans:
                    self.received.extend((who, span) for span in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_trace(self, trace):
        with self.lock:
            return [(who, span) for who, span in self.received if span.trace_id.hex() == trace]


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.server.stop(None)


def test_a_request_is_one_connected_trace(receiver):
    flags = ["--num-shard", str(RANKS), "--otlp-endpoint", receiver.url, "--trace-sampling-ratio", "0"]
    with Server(*flags) as server:
        parameters = {"max_new_tokens": 8, "ignore_eos": True}
        body = {"inputs": PROMPT, "parameters": parameters}
        # The client has decided that it is traced, whatever the ratio.
        status, _ = server.post("/generate", body, traceparent=f"00-{TRACE}-{CLIENT_SPAN}-01")
        assert status == 200
        status, _ = server.post("/generate", body)
        assert status == 200

        def senders():
            found = {(who["service.name"], who.get("service.instance.id")) for who, _ in receiver.of_trace(TRACE)}
            return found if len(found) == 1 + RANKS else None

        wait_until("the router and every rank have sent spans", senders)
    spans = receiver.of_trace(TRACE)
    # What was sent last may have come while the server stopped: nothing is missing between.
    known = {span.span_id.hex() for _, span in spans} | {CLIENT_SPAN}
    orphans = [(who["service.name"], span.name) for who, span in spans if span.parent_span_id.hex() not in known]
    assert not orphans
    names = {span.name for _, span in spans}
    assert {"POST /generate", "queue", "prefill", "decode", "step", "forward"} <= names
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for _, span in spans)
    assert PROMPT not in str(spans), "prompts are nobody's business"
    # The other request was not sampled.
    assert {span.trace_id.hex() for _, span in receiver.received} == {TRACE}
