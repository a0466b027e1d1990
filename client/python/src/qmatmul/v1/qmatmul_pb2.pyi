from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

ACTIVATION_NONE: Activation
ACTIVATION_RELU: Activation
ACTIVATION_UNSPECIFIED: Activation
ARITHMETIC_UNSPECIFIED: Arithmetic
ARITHMETIC_W8A32: Arithmetic
ARITHMETIC_W8A8: Arithmetic
DATA_TYPE_BF16: DataType
DATA_TYPE_F16: DataType
DATA_TYPE_F32: DataType
DATA_TYPE_INT16: DataType
DATA_TYPE_INT2: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT4: DataType
DATA_TYPE_INT8: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_UNSPECIFIED: DataType
DESCRIPTOR: _descriptor.FileDescriptor
LAYOUT_KN: Layout
LAYOUT_NK: Layout
LAYOUT_UNSPECIFIED: Layout
OVERFLOW_ERROR: Overflow
OVERFLOW_SATURATE: Overflow
OVERFLOW_UNSPECIFIED: Overflow
OVERFLOW_WRAP: Overflow
SUSPICION_NONE: Suspicion
SUSPICION_OTHER: Suspicion
SUSPICION_PAIR_SATURATION: Suspicion
SUSPICION_SATURATION: Suspicion
SUSPICION_UNSPECIFIED: Suspicion
SUSPICION_WRAP: Suspicion

class ActivationTensor(_message.Message):
    __slots__ = ["data", "dtype", "dynamic", "shape", "static_scales", "zero_points"]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DYNAMIC_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    STATIC_SCALES_FIELD_NUMBER: _ClassVar[int]
    ZERO_POINTS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    dtype: DataType
    dynamic: DynamicQuantization
    shape: _containers.RepeatedScalarFieldContainer[int]
    static_scales: StaticQuantization
    zero_points: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., static_scales: _Optional[_Union[StaticQuantization, _Mapping]] = ..., dynamic: _Optional[_Union[DynamicQuantization, _Mapping]] = ..., zero_points: _Optional[_Iterable[int]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ["chosen", "device", "eligible", "kernel", "predicted_ns", "reason"]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_NS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    chosen: bool
    device: str
    eligible: bool
    kernel: str
    predicted_ns: int
    reason: str
    def __init__(self, device: _Optional[str] = ..., kernel: _Optional[str] = ..., eligible: bool = ..., chosen: bool = ..., predicted_ns: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ChainStep(_message.Message):
    __slots__ = ["arithmetic", "output", "weight"]
    ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    arithmetic: Arithmetic
    output: OutputSpec
    weight: str
    def __init__(self, weight: _Optional[str] = ..., arithmetic: _Optional[_Union[Arithmetic, str]] = ..., output: _Optional[_Union[OutputSpec, _Mapping]] = ...) -> None: ...

class DeleteWeightRequest(_message.Message):
    __slots__ = ["name"]
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteWeightResponse(_message.Message):
    __slots__ = ["freed_bytes"]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    freed_bytes: int
    def __init__(self, freed_bytes: _Optional[int] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ["description", "features", "id", "kind", "lanes", "memory_bytes", "memory_used_bytes", "state", "threads"]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    description: str
    features: _containers.RepeatedScalarFieldContainer[str]
    id: str
    kind: str
    lanes: int
    memory_bytes: int
    memory_used_bytes: int
    state: str
    threads: int
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., description: _Optional[str] = ..., threads: _Optional[int] = ..., lanes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., state: _Optional[str] = ...) -> None: ...

class DynamicQuantization(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class Execution(_message.Message):
    __slots__ = ["batch_rows", "compute_ns", "device", "digest", "generation", "kernel", "overflow", "overflow_count", "padded_rows", "queue_ns", "verified", "weight"]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    OVERFLOW_COUNT_FIELD_NUMBER: _ClassVar[int]
    OVERFLOW_FIELD_NUMBER: _ClassVar[int]
    PADDED_ROWS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    batch_rows: int
    compute_ns: int
    device: str
    digest: str
    generation: int
    kernel: str
    overflow: Overflow
    overflow_count: int
    padded_rows: int
    queue_ns: int
    verified: bool
    weight: str
    def __init__(self, weight: _Optional[str] = ..., digest: _Optional[str] = ..., generation: _Optional[int] = ..., device: _Optional[str] = ..., kernel: _Optional[str] = ..., overflow: _Optional[_Union[Overflow, str]] = ..., batch_rows: _Optional[int] = ..., padded_rows: _Optional[int] = ..., queue_ns: _Optional[int] = ..., compute_ns: _Optional[int] = ..., verified: bool = ..., overflow_count: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ["activations", "options", "outputs", "rows", "weights"]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    activations: DataType
    options: MatMulOptions
    outputs: _containers.RepeatedCompositeFieldContainer[OutputSpec]
    rows: int
    weights: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, weights: _Optional[_Iterable[str]] = ..., rows: _Optional[int] = ..., activations: _Optional[_Union[DataType, str]] = ..., outputs: _Optional[_Iterable[_Union[OutputSpec, _Mapping]]] = ..., options: _Optional[_Union[MatMulOptions, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ["candidates", "device", "inline", "kernel", "rule"]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    device: str
    inline: bool
    kernel: str
    rule: str
    def __init__(self, device: _Optional[str] = ..., kernel: _Optional[str] = ..., inline: bool = ..., rule: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ...) -> None: ...

class GetStatisticsRequest(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class GetWeightRequest(_message.Message):
    __slots__ = ["name"]
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Kernel(_message.Message):
    __slots__ = ["arithmetic", "device", "disabled", "layout", "measured_gops", "name", "quarantine_time_ns", "quarantined", "reason", "supported", "weight"]
    ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    MEASURED_GOPS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUPPORTED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    arithmetic: Arithmetic
    device: str
    disabled: bool
    layout: str
    measured_gops: float
    name: str
    quarantine_time_ns: int
    quarantined: bool
    reason: str
    supported: bool
    weight: DataType
    def __init__(self, name: _Optional[str] = ..., device: _Optional[str] = ..., supported: bool = ..., disabled: bool = ..., quarantined: bool = ..., reason: _Optional[str] = ..., measured_gops: _Optional[float] = ..., layout: _Optional[str] = ..., quarantine_time_ns: _Optional[int] = ..., weight: _Optional[_Union[DataType, str]] = ..., arithmetic: _Optional[_Union[Arithmetic, str]] = ...) -> None: ...

class KernelStatistics(_message.Message):
    __slots__ = ["compute_ns", "device", "executions", "gops", "kernel", "ops", "rows"]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    GOPS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    OPS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    compute_ns: int
    device: str
    executions: int
    gops: float
    kernel: str
    ops: int
    rows: int
    def __init__(self, device: _Optional[str] = ..., kernel: _Optional[str] = ..., executions: _Optional[int] = ..., rows: _Optional[int] = ..., ops: _Optional[int] = ..., compute_ns: _Optional[int] = ..., gops: _Optional[float] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ["devices"]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ...) -> None: ...

class ListKernelsRequest(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class ListKernelsResponse(_message.Message):
    __slots__ = ["kernels"]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    kernels: _containers.RepeatedCompositeFieldContainer[Kernel]
    def __init__(self, kernels: _Optional[_Iterable[_Union[Kernel, _Mapping]]] = ...) -> None: ...

class ListWeightsRequest(_message.Message):
    __slots__ = ["page_size", "page_token"]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListWeightsResponse(_message.Message):
    __slots__ = ["next_page_token", "weights"]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    next_page_token: str
    weights: _containers.RepeatedCompositeFieldContainer[Weight]
    def __init__(self, weights: _Optional[_Iterable[_Union[Weight, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class MatMulOptions(_message.Message):
    __slots__ = ["arithmetic", "device", "kernel", "verify"]
    ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    arithmetic: Arithmetic
    device: str
    kernel: str
    verify: bool
    def __init__(self, arithmetic: _Optional[_Union[Arithmetic, str]] = ..., device: _Optional[str] = ..., kernel: _Optional[str] = ..., verify: bool = ...) -> None: ...

class MatMulRequest(_message.Message):
    __slots__ = ["activations", "options", "outputs", "then", "weights"]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    THEN_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    activations: ActivationTensor
    options: MatMulOptions
    outputs: _containers.RepeatedCompositeFieldContainer[OutputSpec]
    then: _containers.RepeatedCompositeFieldContainer[ChainStep]
    weights: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, weights: _Optional[_Iterable[str]] = ..., activations: _Optional[_Union[ActivationTensor, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[OutputSpec, _Mapping]]] = ..., options: _Optional[_Union[MatMulOptions, _Mapping]] = ..., then: _Optional[_Iterable[_Union[ChainStep, _Mapping]]] = ...) -> None: ...

class MatMulResponse(_message.Message):
    __slots__ = ["outputs"]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[OutputTensor]
    def __init__(self, outputs: _Optional[_Iterable[_Union[OutputTensor, _Mapping]]] = ...) -> None: ...

class OutputSpec(_message.Message):
    __slots__ = ["activation", "dtype", "overflow", "scale", "skip_bias", "top_k", "zero_point"]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    OVERFLOW_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SKIP_BIAS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    ZERO_POINT_FIELD_NUMBER: _ClassVar[int]
    activation: Activation
    dtype: DataType
    overflow: Overflow
    scale: float
    skip_bias: bool
    top_k: int
    zero_point: int
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., overflow: _Optional[_Union[Overflow, str]] = ..., scale: _Optional[float] = ..., zero_point: _Optional[int] = ..., activation: _Optional[_Union[Activation, str]] = ..., top_k: _Optional[int] = ..., skip_bias: bool = ...) -> None: ...

class OutputTensor(_message.Message):
    __slots__ = ["activation_scales", "data", "dtype", "execution", "indices", "shape"]
    ACTIVATION_SCALES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    activation_scales: Scales
    data: bytes
    dtype: DataType
    execution: Execution
    indices: bytes
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., indices: _Optional[bytes] = ..., activation_scales: _Optional[_Union[Scales, _Mapping]] = ..., execution: _Optional[_Union[Execution, _Mapping]] = ...) -> None: ...

class RearmKernelRequest(_message.Message):
    __slots__ = ["key"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class RearmKernelResponse(_message.Message):
    __slots__ = ["key"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class RegisterWeightRequest(_message.Message):
    __slots__ = ["chunk", "spec"]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    spec: WeightSpec
    def __init__(self, spec: _Optional[_Union[WeightSpec, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class RegisterWeightResponse(_message.Message):
    __slots__ = ["already_registered", "weight"]
    ALREADY_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    already_registered: bool
    weight: Weight
    def __init__(self, weight: _Optional[_Union[Weight, _Mapping]] = ..., already_registered: bool = ...) -> None: ...

class Scales(_message.Message):
    __slots__ = ["data", "dtype"]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    dtype: DataType
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class StaticQuantization(_message.Message):
    __slots__ = ["scales"]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    scales: Scales
    def __init__(self, scales: _Optional[_Union[Scales, _Mapping]] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ["errors", "in_flight_bytes", "in_flight_requests", "kernels", "ops", "output_overflows", "packs", "requests", "rows", "uptime_ns", "version", "weight_bytes", "weights"]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    OPS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_OVERFLOWS_FIELD_NUMBER: _ClassVar[int]
    PACKS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_NS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    errors: int
    in_flight_bytes: int
    in_flight_requests: int
    kernels: _containers.RepeatedCompositeFieldContainer[KernelStatistics]
    ops: int
    output_overflows: int
    packs: int
    requests: int
    rows: int
    uptime_ns: int
    version: str
    weight_bytes: int
    weights: int
    def __init__(self, version: _Optional[str] = ..., uptime_ns: _Optional[int] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., rows: _Optional[int] = ..., ops: _Optional[int] = ..., weights: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., packs: _Optional[int] = ..., in_flight_requests: _Optional[int] = ..., in_flight_bytes: _Optional[int] = ..., output_overflows: _Optional[int] = ..., kernels: _Optional[_Iterable[_Union[KernelStatistics, _Mapping]]] = ...) -> None: ...

class StreamMatMulRequest(_message.Message):
    __slots__ = ["request", "request_id"]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request: MatMulRequest
    request_id: int
    def __init__(self, request_id: _Optional[int] = ..., request: _Optional[_Union[MatMulRequest, _Mapping]] = ...) -> None: ...

class StreamMatMulResponse(_message.Message):
    __slots__ = ["error", "request_id", "response"]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    error: _status_pb2.Status
    request_id: int
    response: MatMulResponse
    def __init__(self, request_id: _Optional[int] = ..., response: _Optional[_Union[MatMulResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ["activations", "arithmetic", "candidate", "output", "weight"]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    activations: ActivationTensor
    arithmetic: Arithmetic
    candidate: OutputTensor
    output: OutputSpec
    weight: str
    def __init__(self, weight: _Optional[str] = ..., activations: _Optional[_Union[ActivationTensor, _Mapping]] = ..., output: _Optional[_Union[OutputSpec, _Mapping]] = ..., arithmetic: _Optional[_Union[Arithmetic, str]] = ..., candidate: _Optional[_Union[OutputTensor, _Mapping]] = ...) -> None: ...

class VerifyResponse(_message.Message):
    __slots__ = ["elements", "expected", "first_column", "first_row", "got", "suspicion", "wrong"]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    FIRST_COLUMN_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    GOT_FIELD_NUMBER: _ClassVar[int]
    SUSPICION_FIELD_NUMBER: _ClassVar[int]
    WRONG_FIELD_NUMBER: _ClassVar[int]
    elements: int
    expected: float
    first_column: int
    first_row: int
    got: float
    suspicion: Suspicion
    wrong: int
    def __init__(self, elements: _Optional[int] = ..., wrong: _Optional[int] = ..., first_row: _Optional[int] = ..., first_column: _Optional[int] = ..., expected: _Optional[float] = ..., got: _Optional[float] = ..., suspicion: _Optional[_Union[Suspicion, str]] = ...) -> None: ...

class Weight(_message.Message):
    __slots__ = ["absences", "bias_count", "copies", "create_time_ns", "digest", "dtype", "generation", "group_size", "k", "layout", "n", "name", "scale_count", "scale_dtype"]
    ABSENCES_FIELD_NUMBER: _ClassVar[int]
    BIAS_COUNT_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SCALE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCALE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    absences: _containers.RepeatedCompositeFieldContainer[WeightAbsence]
    bias_count: int
    copies: _containers.RepeatedCompositeFieldContainer[WeightCopy]
    create_time_ns: int
    digest: str
    dtype: DataType
    generation: int
    group_size: int
    k: int
    layout: Layout
    n: int
    name: str
    scale_count: int
    scale_dtype: DataType
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., layout: _Optional[_Union[Layout, str]] = ..., k: _Optional[int] = ..., n: _Optional[int] = ..., group_size: _Optional[int] = ..., scale_dtype: _Optional[_Union[DataType, str]] = ..., scale_count: _Optional[int] = ..., bias_count: _Optional[int] = ..., digest: _Optional[str] = ..., generation: _Optional[int] = ..., create_time_ns: _Optional[int] = ..., copies: _Optional[_Iterable[_Union[WeightCopy, _Mapping]]] = ..., absences: _Optional[_Iterable[_Union[WeightAbsence, _Mapping]]] = ...) -> None: ...

class WeightAbsence(_message.Message):
    __slots__ = ["device", "reason"]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    device: str
    reason: str
    def __init__(self, device: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class WeightCopy(_message.Message):
    __slots__ = ["bytes", "device", "layout"]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    device: str
    layout: str
    def __init__(self, device: _Optional[str] = ..., layout: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class WeightSpec(_message.Message):
    __slots__ = ["bias_count", "dtype", "expected_digest", "group_size", "k", "layout", "n", "replace", "replace_digest", "scale_count", "scale_dtype", "weight_id"]
    BIAS_COUNT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    REPLACE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    SCALE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCALE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_ID_FIELD_NUMBER: _ClassVar[int]
    bias_count: int
    dtype: DataType
    expected_digest: str
    group_size: int
    k: int
    layout: Layout
    n: int
    replace: bool
    replace_digest: str
    scale_count: int
    scale_dtype: DataType
    weight_id: str
    def __init__(self, weight_id: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., layout: _Optional[_Union[Layout, str]] = ..., k: _Optional[int] = ..., n: _Optional[int] = ..., group_size: _Optional[int] = ..., scale_dtype: _Optional[_Union[DataType, str]] = ..., scale_count: _Optional[int] = ..., bias_count: _Optional[int] = ..., expected_digest: _Optional[str] = ..., replace: bool = ..., replace_digest: _Optional[str] = ...) -> None: ...

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class Layout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class Overflow(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class Activation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class Arithmetic(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class Suspicion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
