"""Bytes between devices, and what they cost."""

import fake_family
import jax
import pytest
from poisoned import poisoned_run

from handjax.benchmarking import scaling
from handjax.benchmarking.scaling import Chip, Traffic
from handjax.distributed import sharding


def test_collectives_are_read_from_a_program():
    program = """
  %a = f32[256,4]{1,0} all-reduce(f32[256,4]{1,0} %x), channel_id=1
  %b = (bf16[8]{0}, pred[3]{0}) all-reduce-start(%y, %z), channel_id=2
  %c = (f32[10]{0}) all-reduce-done(%b)
  %d = u32[2,5]{1,0} all-gather(u32[1,5]{1,0} %w), dimensions={0}
  %e = f32[] add(%p, %q)
"""
    found = scaling.collectives(program)
    assert found == {"all-reduce": 256 * 4 * 4 + 8 * 2 + 3, "all-gather": 40}


def test_efficiency_is_the_share_of_computing():
    chip = Chip(flops=1e12 / scaling.MFU, link=1e9, source="")
    # 1 s of work; 8 devices send 2 * 7/8 of 400 MB: 0.7 s.
    seen = Traffic({"all-reduce": 400_000_000}, 1e12, 0)
    found = scaling.efficiency(seen, chip, 8)
    assert found.alone == pytest.approx(1 / 1.7)
    assert found.overlapped == 1.0
    more = Traffic({"all-reduce": 400_000_000, "all-gather": 8e8}, 1e12, 0)
    found = scaling.efficiency(more, chip, 8)
    assert found.alone == pytest.approx(1 / 2.4)
    assert found.overlapped == pytest.approx(1 / 1.4)
    # An all-reduce is a reduce-scatter and an all-gather.
    halves = Traffic({"reduce-scatter": 50_000_000, "all-gather": 4e8}, 1e12, 0)
    assert scaling.efficiency(halves, chip, 8) == scaling.efficiency(seen, chip, 8)


def test_an_update_sums_every_gradient_over_the_devices_once(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling.run_data, "for_stage", lambda batch, stage: batch)
    run = poisoned_run(tmp_path / "w")
    run = run._replace(mesh=sharding.make_mesh(run.config.mesh, jax.devices()[:4]))
    mesh = fake_family.stages(run.config)[1]
    seen = scaling.traffic(run, mesh)
    head = 16 * 3 * 8 + 8
    norm = 2 * (16 * 3)
    sent = seen.bytes_by_kind["all-reduce"]
    # Beside gradients: moments of the norm, loss, metrics; the frozen decoder is none.
    assert 4 * (head + norm) <= sent < 2 * 4 * (head + norm) + 200
    assert seen.flops > 0


def test_standard_output_is_left_to_the_numbers(tmp_path, monkeypatch, capsys):
    run = poisoned_run(tmp_path / "w")

    def prepare(config, workdir, *, create):
        print("fake on 8 x cpu")
        return run

    monkeypatch.setattr(scaling.launch, "prepare", prepare)
    seen = Traffic({"all-reduce": 1_234_567}, 1e9, 10**6)
    monkeypatch.setattr(scaling, "traffic", lambda run, stage: seen)
    first, *_ = scaling.rows(run.config)
    assert first[:4] == ("fake/tokenizer", "all-reduce", 1.23, "MB")
    output = capsys.readouterr()
    assert not output.out and "fake on 8 x cpu" in output.err
