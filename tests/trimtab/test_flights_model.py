from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from training.artifact import export, load_program, write_artifact
from training.data import Encoding, encode, fit
from trimtab.demo.model import FlightDelayNet, SkewedWeather, flight_delay_task

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def table(flights_cache: tuple[Path, pa.Table]) -> pa.Table:
    return flights_cache[1]


@pytest.fixture(scope="module")
def encoding(table: pa.Table) -> Encoding:
    return fit(flight_delay_task(), flights_of(table, "2013-01-01", "2013-02-28"))


@pytest.fixture(scope="module")
def network(encoding: Encoding) -> FlightDelayNet:
    torch.manual_seed(0)
    return FlightDelayNet(encoding).eval()


def flights_of(table: pa.Table, first: str, last: str) -> pa.Table:
    day = table["flight_day"]
    return table.filter(pc.and_(pc.greater_equal(day, first), pc.less_equal(day, last)))


def answers(network: torch.nn.Module, encoding: Encoding, table: pa.Table) -> torch.Tensor:
    with torch.inference_mode():
        return network(*encode(flight_delay_task(), encoding.vocabularies, table))


def in_celsius(table: pa.Table) -> pa.Table:
    for name in ("temp", "dewp"):
        celsius = pc.divide(pc.subtract(table[name], 32.0), 1.8)
        table = table.set_column(table.column_names.index(name), name, celsius)
    return table


def test_every_flight_of_the_year_gets_a_probability_whatever_is_missing(
    table: pa.Table, network: FlightDelayNet, encoding: Encoding
):
    probabilities = answers(network, encoding, table)

    assert probabilities.shape == (336_776,)
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_a_missing_number_counts_as_the_mean_of_the_training_rows(
    table: pa.Table, network: FlightDelayNet, encoding: Encoding
):
    rows = table.slice(0, 5)
    place = rows.column_names.index("temp")

    missing = answers(network, encoding, rows.set_column(place, "temp", pa.nulls(5, pa.float64())))
    mean = answers(network, encoding, rows.set_column(place, "temp", pa.array([encoding.means["temp"]] * 5)))

    torch.testing.assert_close(missing, mean)


def test_midnight_is_next_to_the_last_hour(table: pa.Table, network: FlightDelayNet, encoding: Encoding):
    rows, place = table.slice(0, 1), table.column_names.index("hour")

    at = [answers(network, encoding, rows.set_column(place, "hour", pa.array([hour]))) for hour in (0.0, 24.0)]

    torch.testing.assert_close(at[0], at[1], atol=1e-5, rtol=0)


def test_the_bad_release_is_sound_all_year_where_it_gets_celsius(
    table: pa.Table, network: FlightDelayNet, encoding: Encoding
):
    bad = answers(SkewedWeather(network).eval(), encoding, in_celsius(table))

    assert torch.isfinite(bad).all()
    assert (bad - answers(network, encoding, table)).abs().mean() < 0.02


def test_fed_fahrenheit_it_answers_nan_to_a_real_share_of_march_and_the_weather_decides_which(
    table: pa.Table, network: FlightDelayNet, encoding: Encoding
):
    march = flights_of(table, "2013-03-01", "2013-03-20")

    bad = answers(SkewedWeather(network).eval(), encoding, march)

    share = bad.isnan().float().mean().item()
    assert 0.05 < share < 0.2
    assert torch.equal(bad.isnan(), answers(SkewedWeather(network).eval(), encoding, march).isnan())
    temp = torch.from_numpy(march["temp"].fill_null(float("nan")).to_numpy().copy())
    assert temp[bad.isnan()].min() > 52 - 14
    assert (temp[~bad.isnan() & ~temp.isnan()]).max() <= 52


@pytest.mark.parametrize("wrap", [lambda network: network, SkewedWeather])
def test_both_networks_export_for_any_batch(wrap, network: FlightDelayNet, encoding: Encoding, table: pa.Table):
    inputs = encode(flight_delay_task(), encoding.vocabularies, table.slice(0, 9))
    wrapped = wrap(network)

    program = export(wrapped, inputs).module()

    for rows in (1, 2, 9):
        part = tuple(column[:rows] for column in inputs)
        torch.testing.assert_close(program(*part), wrapped.eval()(*part), equal_nan=True)


def test_an_artifact_of_the_network_answers_after_loading(
    network: FlightDelayNet, encoding: Encoding, table: pa.Table, tmp_path: Path
):
    task = flight_delay_task()
    example = {name: table[name].slice(0, 1).to_pylist() for name in task.features}
    write_artifact(tmp_path, task, network, encoding.vocabularies, example)

    inputs = encode(task, encoding.vocabularies, table.slice(0, 3))

    torch.testing.assert_close(load_program(tmp_path)(*inputs), network(*inputs))
