"""A reload changes everything or nothing, and never ends the sensor."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests import certificates
from tests.conftest import Start
from tests.harness import Sensor, payload, tcppc, wait_until

PERSONA = 'banner = "220 {word}\\r\\n"\n'
HELD = 200
RELOADS_SECONDS = 20.0
EVERY_SECONDS = 0.05


def configuration(folder: Path, zone: str = "UTC", action: str = "true") -> str:
    return (
        f'[tcppc]\ntimezone = "{zone}"\nrotInt = 5\ntcpFileFmt = "{folder}/data-%H%M%S.jsonl"\n'
        f'x509Cert = "{folder}/server.crt"\nx509Key = "{folder}/server.key"\n'
        f'[capture]\ntls = "auto"\n'
        f'[personas]\nfolder = "{folder}/personas"\n"tcp/1-65535" = "own"\n'
        f'[files]\nsession_dir = "{folder}/sessions"\n'
        f'[[action]]\non = "connect"\ncommand = "{action}"\nonce_per = 3600\n'
    )


def whole(folder: Path) -> None:
    """All that the configuration names is there and sound."""
    (folder / "personas").mkdir(exist_ok=True)
    (folder / "personas" / "own.toml").write_text(PERSONA.format(word="ready"), encoding="ascii")
    (folder / "c.toml").write_text(configuration(folder), encoding="ascii")
    kept = folder / "kept"
    if not kept.exists():
        kept.mkdir()
        certificates.make(kept, "ec")
    for name in ("server.crt", "server.key"):
        shutil.copy(kept / name, folder / name)


def disturb(folder: Path, lot: random.Random) -> None:
    """One thing of the configuration changes, vanishes or comes back, as an editor or a deployment would have it."""
    persona, certificate = folder / "personas" / "own.toml", folder / "server.crt"
    what = lot.randrange(10)
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        if what == 0:
            persona.unlink()
        elif what == 1:
            persona.write_text("greet = 7\nnonsense", encoding="ascii")
        elif what == 2:
            shutil.rmtree(folder / "personas")
        elif what == 3:
            certificate.unlink()
        elif what == 4:
            certificate.write_text("no certificate", encoding="ascii")
        elif what == 5:
            (folder / "c.toml").write_text(configuration(folder, zone="No/Where"), encoding="ascii")
        elif what == 6:
            (folder / "c.toml").write_text(configuration(folder, action="false [NO_TOKEN]"), encoding="ascii")
        elif what == 7:
            (folder / "c.toml").unlink()
        elif what == 8:
            (folder / "sessions").rename(folder / f"sessions-{lot.random()}")
        else:
            whole(folder)


def test_nothing_is_lost_while_all_that_a_reload_reads_changes_vanishes_and_comes_back(
    start: Start, tmp_path: Path
) -> None:
    whole(tmp_path)
    sensor = start("-c", str(tmp_path / "c.toml"), "-q", file="")
    socks = [sensor.connect() for _ in range(HELD)]
    for number, sock in enumerate(socks):
        sock.sendall(b"held %d\n" % number)
    lot = random.Random(7)
    over = threading.Event()

    def change() -> None:
        while not over.wait(0.01):
            disturb(tmp_path, lot)

    changing = threading.Thread(target=change)
    changing.start()
    until = time.monotonic() + RELOADS_SECONDS
    signals = 0
    while time.monotonic() < until:
        assert sensor.process.poll() is None, sensor.log
        sensor.process.send_signal(signal.SIGHUP)
        signals += 1
        time.sleep(EVERY_SECONDS)
    over.set()
    changing.join()
    assert signals > 100
    assert "Reload refused" in sensor.log
    assert "Reloaded." in sensor.log
    assert sensor.stop() == 0, sensor.log
    for sock in socks:
        sock.close()
    records = [record for path in tmp_path.glob("data-*.jsonl") for record in lines(path)]
    assert sorted(payload(record) for record in records) == sorted(b"held %d\n" % number for number in range(HELD))
    assert {record["closed"] for record in records} == {"shutdown"}
    assert "going on" not in sensor.log.replace("going on with the old one", "")


def lines(path: Path) -> list[dict[str, object]]:
    import json

    return [json.loads(line) for line in path.read_bytes().splitlines()]


def held(sensor: Sensor, count: int) -> list[socket.socket]:
    socks = [sensor.connect() for _ in range(count)]
    for number, sock in enumerate(socks):
        sock.sendall(b"open %d" % number)
    wait_until(lambda: sensor.log.count("Received:") == count, "all to be read")
    return socks


@pytest.mark.parametrize(
    "patch",
    [
        "import tcppc.daemon as d; d.Reloads.ask = lambda *_: 1 / 0",
        "import tcppc.reload as r; r._parts = lambda *_: 1 / 0",
        "import tcppc.reload as r; r.prepare = lambda *_: (_ for _ in ()).throw(MemoryError())",
        "import tcppc.reload as r; r.prepare = lambda *_: (_ for _ in ()).throw(SystemExit(3))",
        "import tcppc.log as l; l.Log.reopen = lambda self: 1 / 0",
    ],
)
def test_whatever_is_raised_in_the_main_thread_all_open_sessions_are_recorded(start: Start, patch: str) -> None:
    sensor = start(patch=patch)
    socks = held(sensor, 5)
    sensor.process.send_signal(signal.SIGHUP)
    with contextlib.suppress(AssertionError):  # what is refused does not end it
        wait_until(lambda: sensor.process.poll() is not None or "Reload refused" in sensor.log, "the reload")
    if sensor.process.poll() is None:
        assert sensor.stop() == 0
    else:
        assert sensor.process.returncode == 1
        assert "The main thread failed: " in sensor.log
    assert sorted(payload(record) for record in sensor.records(5)) == [b"open %d" % number for number in range(5)]
    assert sensor.account().returncode == 0
    for sock in socks:
        sock.close()


def test_a_persona_file_that_changes_while_a_reload_reads_it_is_read_once(start: Start, tmp_path: Path) -> None:
    """Built twice, the second time could fail after the first had been taken for sound."""
    whole(tmp_path)
    count = tmp_path / "count"
    patch = (
        "import tcppc.prepare as p; real = p.personas; "
        f"p.personas = lambda config: (open({str(count)!r}, 'a').write('x'), real(config))[1]"
    )
    sensor = start("-c", str(tmp_path / "c.toml"), patch=patch)
    before = count.stat().st_size
    sensor.process.send_signal(signal.SIGHUP)
    sensor.said("Reloaded.")
    assert count.stat().st_size == before + 1


def test_one_part_that_fails_to_adopt_leaves_the_others_and_the_sensor(start: Start, tmp_path: Path) -> None:
    whole(tmp_path)
    patch = (
        "from tcppc.capture.spill import Spill; "
        "Spill.set_most = lambda self, most: (_ for _ in ()).throw(LookupError('a bug'))"
    )
    sensor = start("-c", str(tmp_path / "c.toml"), "-w", str(tmp_path / "d.jsonl"), file="", patch=patch)
    (tmp_path / "c.toml").write_text(configuration(tmp_path, zone="Asia/Tokyo"), encoding="ascii")
    sensor.process.send_signal(signal.SIGHUP)
    log = sensor.said("Reloaded.")
    assert "Reload: LookupError: a bug; the rest is adopted." in log
    sensor.send(b"after it")
    wait_until(lambda: lines(tmp_path / "d.jsonl"), "the record")
    assert str(lines(tmp_path / "d.jsonl")[0]["timestamp"]).endswith("+09:00")
    assert sensor.stop() == 0


def test_a_log_file_that_is_a_fifo_nobody_reads_holds_up_no_reload(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "tcppc.log"
    settings = tmp_path / "c.toml"
    settings.write_text(f'[tcppc]\nlogFile = "{log}"\n', encoding="ascii")
    sensor = start("-c", str(settings), wait=False)
    wait_until(lambda: log.exists() and b"Start UDP server." in log.read_bytes(), "the start")
    port = int(log.read_text().split("Listen: 127.0.0.1:")[1].split()[0])
    log.unlink()
    os.mkfifo(log)
    sensor.process.send_signal(signal.SIGHUP)
    for number in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(b"%d" % number)
    assert len(sensor.records(20)) == 20
    assert sensor.stop() == 0


def test_a_reload_that_hangs_holds_up_neither_the_stop_nor_who_looks_whether_it_lives(start: Start) -> None:
    patch = "import time; import tcppc.reload as r; r.SLOW_SECONDS = 0.2; real = r.prepare; "
    patch += "r.prepare = lambda *_: time.sleep(3600)"
    sensor = start("--metrics", "127.0.0.1:0", patch=patch)
    socks = held(sensor, 5)
    sensor.process.send_signal(signal.SIGHUP)
    sensor.said("Reload: reading the configuration and its files has not returned for ")
    sensor.process.send_signal(signal.SIGHUP)
    sensor.send(b"meanwhile")
    sensor.records(1)
    assert sensor.stop() == 0
    assert "6 accepted, 0 open, 6 recorded" in sensor.log
    for sock in socks:
        sock.close()


def test_a_signal_that_comes_while_a_reload_is_built_makes_one_more(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    patch = "import os, time; import tcppc.reload as r; real = r.prepare; "
    patch += f"there = lambda: os.path.exists('{tmp_path}/slow'); "
    patch += "r.prepare = lambda *a: ([time.sleep(0.05) for _ in iter(there, False)], real(*a))[1]"
    (tmp_path / "c.toml").write_text('[capture]\nsensor = "old"\n')
    sensor = start("-c", str(tmp_path / "c.toml"), patch=patch)
    sensor.process.send_signal(signal.SIGHUP)
    time.sleep(0.3)  # it has begun: what it reads may be the old one
    (tmp_path / "c.toml").write_text('[capture]\nsensor = "new"\n')
    for _ in range(5):
        sensor.process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    (tmp_path / "slow").unlink()
    wait_until(lambda: sensor.log.count("Reloaded.") == 2, "both")
    sensor.send(b"x")
    assert sensor.records(1)[0]["sensor"] == "new"
    assert sensor.stop() == 0


@pytest.mark.parametrize("which", ["certificate", "key", "the sensor's own"])
def test_a_fifo_in_place_of_a_key_is_refused_and_not_waited_for(which: str, start: Start, tmp_path: Path) -> None:
    flags: tuple[str, ...] = ()
    path = str(tmp_path / "state" / "rsa.key")
    if which != "the sensor's own":
        certificate, key = certificates.make(tmp_path, "ec")
        flags = "-C", certificate, "-K", key
        path = {"certificate": certificate, "key": key}[which]
    sensor = start(*flags)
    os.unlink(path)
    os.mkfifo(path)
    sensor.process.send_signal(signal.SIGHUP)
    log = sensor.said("no regular file")
    assert ("Reload refused" in log) == bool(flags)
    assert sensor.stop() == 0
    if flags:
        done = tcppc("-H", "127.0.0.1", "-p", "0", *flags)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "no regular file; expected two PEM files that can be read" in done.stderr


def test_a_reload_into_the_folder_of_another_sensor_is_refused(start: Start, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / f"{name}.toml").write_text(f'[tcppc]\ntcpFileFmt = "{tmp_path}/{name}/data.jsonl"\n')
    one, other = (start("-c", str(tmp_path / f"{name}.toml"), file="") for name in ("one", "other"))
    (tmp_path / "one.toml").write_text(f'[tcppc]\ntcpFileFmt = "{tmp_path}/other/mine.jsonl"\n')
    one.process.send_signal(signal.SIGHUP)
    one.said(
        f"Reload refused, the configuration stays as it was: {tmp_path}/other: another sensor writes its data files"
    )
    for sensor in (one, other):
        sensor.send(b"x")
        assert sensor.stop() == 0
    for name in ("one", "other"):
        assert tcppc("account", str(tmp_path / name)).returncode == 0


def test_two_names_of_one_file_are_no_way_for_two_sensors_into_it(start: Start, tmp_path: Path) -> None:
    year = time.strftime("%Y")
    first = start("-T", "86400", "-w", f"{tmp_path}/e/%Y/t.jsonl", file="")
    second = start("-w", f"{tmp_path}/e/{year}/t.jsonl", file="", wait=False)
    assert second.process.wait(60) == 1
    assert f"{tmp_path}/e/{year}/t.jsonl: another sensor writes to it" in second.log
    assert first.stop() == 0
