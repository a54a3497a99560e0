"""The functions of PromQL: the types of their arguments and of what they give (promql/parser/functions.go)."""

from __future__ import annotations

from dataclasses import dataclass

TYPES = {"v": "instant vector", "m": "range vector", "s": "scalar", "t": "string"}


@dataclass(frozen=True, slots=True)
class Signature:
    """`arguments` and `result` are letters of TYPES; `variadic` is how often the last argument may come or be left
    out, -1 for any number."""

    arguments: str
    result: str = "v"
    variadic: int = 0


_VECTOR = (
    "abs absent acos acosh asin asinh atan atanh ceil cos cosh deg exp floor histogram_avg histogram_count "
    "histogram_stddev histogram_stdvar histogram_sum ln log10 log2 rad sgn sin sinh sort sort_desc sqrt tan tanh "
    "timestamp"
)
_CALENDAR = "day_of_month day_of_week day_of_year days_in_month hour minute month year"
_RANGE = (
    "absent_over_time avg_over_time changes count_over_time delta deriv first_over_time idelta increase irate "
    "last_over_time mad_over_time max_over_time min_over_time present_over_time rate resets stddev_over_time "
    "stdvar_over_time sum_over_time ts_of_first_over_time ts_of_last_over_time ts_of_max_over_time ts_of_min_over_time"
)
SIGNATURES: dict[str, Signature] = {
    **dict.fromkeys(_VECTOR.split(), Signature("v")),
    **dict.fromkeys(_CALENDAR.split(), Signature("v", variadic=1)),
    **dict.fromkeys(_RANGE.split(), Signature("m")),
    **dict.fromkeys(("time", "pi", "start", "end", "step", "range"), Signature("", "s")),
    **dict.fromkeys(("min_of", "max_of"), Signature("ss", "s")),
    **dict.fromkeys(("holt_winters", "double_exponential_smoothing"), Signature("mss")),
    **dict.fromkeys(("clamp_min", "clamp_max"), Signature("vs")),
    **dict.fromkeys(("sort_by_label", "sort_by_label_desc"), Signature("vt", variadic=-1)),
    "clamp": Signature("vss"),
    "histogram_fraction": Signature("ssv"),
    "histogram_quantile": Signature("sv"),
    "histogram_quantiles": Signature("vts", variadic=9),
    "info": Signature("vv", variadic=1),
    "label_join": Signature("vttt", variadic=-1),
    "label_replace": Signature("vtttt"),
    "predict_linear": Signature("ms"),
    "quantile_over_time": Signature("sm"),
    "round": Signature("vs", variadic=1),
    "scalar": Signature("v", "s"),
    "vector": Signature("s"),
}
