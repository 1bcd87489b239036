"""The message tf.train.Example, in which TFDS, seqio and TensorFlow store records.

Defined here as in tensorflow/core/example/{example,feature}.proto, with the same bytes, because
importing a package that has it imports pandas and much else (TFDS), or TensorFlow.
"""

import functools
from typing import Any

__all__ = ["example_class"]

_PACKAGE = "ofa_jax"
# Messages of one repeated field, and the fields of Feature, of which one is set.
_LISTS = {"BytesList": "TYPE_BYTES", "FloatList": "TYPE_FLOAT", "Int64List": "TYPE_INT64"}
_KINDS = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}


@functools.cache
def example_class() -> Any:
    """Returns the class `tf.train.Example` of protobuf messages, which is imported only now."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    fields = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}/example.proto", package=_PACKAGE, syntax="proto3"
    )

    def message(name: str, parent: Any = file.message_type) -> Any:
        return parent.add(name=name)

    def field(owner: Any, name: str, kind: str, repeated: bool = False, **options: Any) -> None:
        """Adds the next field: of a type, or of a message of this file."""
        if not kind.startswith("TYPE_"):
            kind, options["type_name"] = "TYPE_MESSAGE", f".{_PACKAGE}.{kind}"
        label = fields.LABEL_REPEATED if repeated else fields.LABEL_OPTIONAL
        number = len(owner.field) + 1
        type_number = fields.Type.Value(kind)
        owner.field.add(name=name, number=number, type=type_number, label=label, **options)

    for name, kind in _LISTS.items():
        field(message(name), "value", kind, repeated=True)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for name, kind in _KINDS.items():
        field(feature, name, kind, oneof_index=0)
    features = message("Features")
    entry = message("FeatureEntry", features.nested_type)
    entry.options.map_entry = True
    field(entry, "key", "TYPE_STRING")
    field(entry, "value", "Feature")
    field(features, "feature", "Features.FeatureEntry", repeated=True)
    field(message("Example"), "features", "Features")

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))
