"""Reads ``graph.pbtxt`` with protobuf, by the parts of OVMS's and mediapipe's messages it uses.

The field numbers are those of mediapipe's ``calculator.proto`` and of OVMS's
``src/llm/llm_calculator.proto``. A name that is not in them, or a value of another type, is an
error, as it is when OVMS starts.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, text_format

_STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_BOOL = descriptor_pb2.FieldDescriptorProto.TYPE_BOOL
_UINT = descriptor_pb2.FieldDescriptorProto.TYPE_UINT64

_MESSAGES: dict[str, list[tuple[str, int, Any, bool]]] = {
    # name, number, type, repeated
    "LLMCalculatorOptions": [
        ("models_path", 1, _STRING, False),
        ("max_num_batched_tokens", 2, _UINT, False),
        ("cache_size", 3, _UINT, False),
        ("max_num_seqs", 4, _UINT, False),
        ("dynamic_split_fuse", 5, _BOOL, False),
        ("device", 6, _STRING, False),
        ("plugin_config", 7, _STRING, False),
        ("enable_prefix_caching", 10, _BOOL, False),
        ("tool_parser", 21, _STRING, False),
        ("reasoning_parser", 22, _STRING, False),
        ("enable_tool_guided_generation", 23, _BOOL, False),
    ],
    "SyncSet": [("tag_index", 1, _STRING, True)],
    "SyncSetInputStreamHandlerOptions": [("sync_set", 1, "SyncSet", True)],
    "MediaPipeOptions": [],
    "InputStreamHandlerConfig": [
        ("input_stream_handler", 1, _STRING, False),
        ("options", 3, "MediaPipeOptions", False),
    ],
    "InputStreamInfo": [("tag_index", 1, _STRING, False), ("back_edge", 2, _BOOL, False)],
    "Node": [
        ("name", 1, _STRING, False),
        ("calculator", 2, _STRING, False),
        ("input_stream", 3, _STRING, True),
        ("output_stream", 4, _STRING, True),
        ("input_side_packet", 5, _STRING, True),
        ("node_options", 8, ".google.protobuf.Any", True),
        ("input_stream_handler", 11, "InputStreamHandlerConfig", False),
        ("input_stream_info", 13, "InputStreamInfo", True),
    ],
    "CalculatorGraphConfig": [
        ("node", 1, "Node", True),
        ("input_stream", 10, _STRING, True),
        ("output_stream", 15, _STRING, True),
    ],
}


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="mediapipe.proto", package="mediapipe", dependency=["google/protobuf/any.proto"]
    )
    for name, members in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated in members:
            field = message.field.add(name=field_name, number=number)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type = field.TYPE_MESSAGE
                field.type_name = kind if kind.startswith(".") else f".mediapipe.{kind}"
            else:
                field.type = kind
        if name == "MediaPipeOptions":
            message.extension_range.add(start=20000, end=536870912)
        if name == "SyncSetInputStreamHandlerOptions":
            extension = message.extension.add(name="ext", number=99659863)
            extension.label = extension.LABEL_OPTIONAL
            extension.type = extension.TYPE_MESSAGE
            extension.type_name = f".mediapipe.{name}"
            extension.extendee = ".mediapipe.MediaPipeOptions"
    pool = descriptor_pool.DescriptorPool()
    any_file = descriptor_pb2.FileDescriptorProto()
    any_pb2.DESCRIPTOR.CopyToProto(any_file)
    pool.Add(any_file)
    pool.Add(file)
    return pool


def parse_graph(text: str) -> tuple[Any, Any]:
    """Return the graph and the options of its only node.

    Raises:
        google.protobuf.text_format.ParseError: It is not a graph.
    """
    pool = _pool()
    graph_class = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("mediapipe.CalculatorGraphConfig")
    )
    options_class = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("mediapipe.LLMCalculatorOptions")
    )
    graph = text_format.Parse(text, graph_class(), descriptor_pool=pool)
    (node,) = graph.node
    (packed,) = node.node_options
    options = options_class()
    assert packed.type_url == "type.googleapis.com/mediapipe.LLMCalculatorOptions"
    options.ParseFromString(packed.value)
    return graph, options
