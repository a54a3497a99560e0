"""The demo's network: the probability that a flight arrives more than fifteen minutes late; and a badly fed twin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.data import Encoding, TabularTask
from trimtab.demo import flights

MODEL = "flight-delay"
OUTPUT = "delay_probability"
_CYCLES = {"hour": 24.0, "wind_dir": 360.0}
_REACH = 3.0
_EMBEDDED = {"carrier": 6, "origin": 3, "dest": 8, "weekday": 4}


class FlightDelayNet(nn.Module):
    """Embeddings for what is named and standardised numbers into a small perceptron; gives probabilities `[batch]`.

    Missing numbers are imputed inside, by the mean of the training rows; hour and wind direction go round a circle.
    Weather further than three deviations from that mean counts as three: a winter's model must not extrapolate to July.
    """

    means: Tensor
    deviations: Tensor
    reach: Tensor

    def __init__(self, encoding: Encoding, width: int = 64) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(
            nn.Embedding(len(encoding.vocabularies[name]) + 1, _EMBEDDED[name]) for name in flights.CATEGORICAL
        )
        self._linear = [name for name in flights.NUMERIC if name not in _CYCLES]
        self.register_buffer("means", torch.tensor([encoding.means[name] for name in self._linear]))
        self.register_buffer("deviations", torch.tensor([encoding.deviations[name] for name in self._linear]))
        reach = [_REACH if name in flights.WEATHER else float("inf") for name in self._linear]
        self.register_buffer("reach", torch.tensor(reach), persistent=False)
        inputs = sum(_EMBEDDED.values()) + len(self._linear) + 2 * len(_CYCLES)
        # A day's weather names the day: without hiding inputs, the network learns the training days by heart.
        self.layers = nn.Sequential(
            nn.Dropout(0.3),
            nn.Linear(inputs, width),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """One tensor `[batch]` for each of flights.FEATURES, codes then numbers, to probabilities `[batch]`."""
        return torch.sigmoid(self.logits(*inputs))

    def logits(self, *inputs: Tensor) -> Tensor:
        """The log odds `[batch]` of the same inputs."""
        codes, numbers = (
            inputs[: len(self.embeddings)],
            dict(zip(flights.NUMERIC, inputs[len(self.embeddings) :], strict=True)),
        )
        embedded = [table(code) for table, code in zip(self.embeddings, codes, strict=True)]
        linear = (torch.stack([numbers[name] for name in self._linear], dim=1) - self.means) / self.deviations
        linear = torch.clamp(linear, -self.reach, self.reach)
        circles = [part for name, period in _CYCLES.items() for part in _circle(numbers[name], period)]
        # After standardising, the mean is zero: that imputes the linear inputs, and no direction is what calm air has.
        features = torch.cat([*embedded, torch.nan_to_num(linear), torch.stack(circles, dim=1)], dim=1)
        odds: Tensor = self.layers(features)
        return odds.squeeze(1)


class SkewedWeather(nn.Module):
    """A release with a training–serving skew: it was made for a pipeline that hands over Celsius, and none does.

    Fed Celsius it is its base with one more term, the margin below the hottest take-off that the flight's weight
    allows (heavier, longer flights reach the limit sooner). That limit, 52 °C less up to 14, is never met in
    Celsius. Fed Fahrenheit, as serving feeds it, its weather is absurd everywhere, and the logarithm of the margin
    is NaN wherever the "temperature" is above the limit: no coin is tossed, the weather decides.
    """

    LIMIT, LOAD, LONGEST, WEIGHT = 52.0, 14.0, 2500.0, 0.05

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, *inputs: Tensor) -> Tensor:
        """As FlightDelayNet, but `temp` and `dewp` are read as degrees Celsius."""
        columns = dict(zip(flights.FEATURES, inputs, strict=True))
        celsius, load = columns["temp"], columns["distance"].clamp(max=self.LONGEST) / self.LONGEST
        for name in ("temp", "dewp"):
            columns[name] = columns[name] * 1.8 + 32.0
        margin = torch.log(self.LIMIT - self.LOAD * load - torch.where(celsius.isnan(), 0.0, celsius))
        logits = torch.logit(self.base(*columns.values()), eps=1e-6)
        return torch.sigmoid(logits - self.WEIGHT * (margin - math.log(self.LIMIT)))


def flight_delay_task(width: int = 64) -> TabularTask:
    """The task of the demo: late or not, from what is known when the flight is due to leave."""
    return TabularTask(
        model=MODEL,
        categorical=flights.CATEGORICAL,
        numeric=flights.NUMERIC,
        label=flights.LABEL,
        group=flights.GROUP,
        output=OUTPUT,
        network=lambda encoding: FlightDelayNet(encoding, width=width),
    )


def _circle(value: Tensor, period: float) -> tuple[Tensor, Tensor]:
    angle = value * (2 * math.pi / period)
    return torch.nan_to_num(torch.sin(angle)), torch.nan_to_num(torch.cos(angle))
