"""What `tests/bench/edge` measures: loads, one after the other, and the ratios of their medians."""

import os
import re
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time

transport, daemon, nginx, instance, *cells = sys.argv[1:]
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = int(os.environ.get("SECONDS_EACH", "4"))
NAMES = ("epiniod", "nginx")
scheme = {"plain": "http", "tls": "https"}[transport]
ports = {"plain": {"epiniod": 18080, "nginx": 18081}, "tls": {"epiniod": 18443, "nginx": 18444}}[transport]
TICK = os.sysconf("SC_CLK_TCK")


def processes(name):
    """A server and its workers."""
    first = daemon if name == "epiniod" else nginx
    workers = subprocess.run(["pgrep", "-P", first, "-x", "nginx"], capture_output=True, text=True).stdout.split()
    return [first, *workers] if name == "nginx" else [first]


def on_processors(name):
    """Seconds, of user and system."""
    total = 0
    for process in processes(name):
        with open(f"/proc/{process}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def memory(name, line="VmRSS"):
    """KiB, of all processes together: what they share is counted for each."""
    total = 0
    for process in processes(name):
        with open(f"/proc/{process}/status") as file:
            total += int(re.search(rf"^{line}:\s+(\d+)", file.read(), re.M).group(1))
    return total


def proportional(name):
    """KiB, with what is shared divided among those who share it."""
    total = 0
    for process in processes(name):
        with open(f"/proc/{process}/smaps_rollup") as file:
            total += int(re.search(r"^Pss:\s+(\d+)", file.read(), re.M).group(1))
    return total


def wanted(cell):
    return not cells or cell in cells


def load(name, size, connections):
    url = f"{scheme}://site.localhost:{ports[name]}/{size}"
    before = on_processors(name)
    # A thousand handshakes take some seconds.
    seconds = SECONDS * (1 if connections < 1000 else 3)
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "20s", url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = on_processors(name) - before
    done = int(re.search(r"(\d+) requests in", text).group(1))
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))
    bad = sum(int(count) for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    bad += sum(int(count) for line in re.findall(r"Socket errors: (.*)", text) for count in re.findall(r"\d+", line))
    return rate, spent / max(done, 1) * 1e6, bad, memory(name)


def throughput(size, connections):
    runs = {name: [] for name in NAMES}
    for turn in range(ROUNDS):
        for name in NAMES if turn % 2 == 0 else reversed(NAMES):
            runs[name].append(load(name, size, connections))
            # Connections to the instance that nobody uses are closed.
            time.sleep(2.2)
    rate = {name: statistics.median(run[0] for run in runs[name]) for name in NAMES}
    cost = {name: statistics.median(run[1] for run in runs[name]) for name in NAMES}
    failed = {name: sum(run[2] for run in runs[name]) for name in NAMES}
    most = {name: max(run[3] for run in runs[name]) for name in NAMES}
    print(
        f"{transport:5} {size} {connections:5}  {rate['epiniod']:9.0f} {rate['nginx']:9.0f}  {rate['epiniod'] / max(rate['nginx'], 1):5.2f}"
        f"   {cost['epiniod']:8.1f} {cost['nginx']:8.1f}  {cost['nginx'] / max(cost['epiniod'], 1):5.2f}"
        f"   {most['epiniod'] / 1024:6.1f} {most['nginx'] / 1024:6.1f}   {failed['epiniod']} {failed['nginx']}",
        flush=True,
    )


def times(url, connect):
    """Microseconds of requests that are sent when it is time to, whether or not others are answered."""
    with tempfile.NamedTemporaryFile("r") as log:
        command = ["h2load", "--h1", "-c", "4", "--rps", "25", "-D", str(SECONDS), f"--log-file={log.name}"]
        subprocess.run([*command, f"--connect-to={connect}", url], capture_output=True, check=True)
        lines = [line.split("\t") for line in log.read().splitlines()]
    assert all(status == "200" for _, status, _ in lines), "every request is answered"
    return [int(time) for _, _, time in lines]


def latency():
    targets = {"direct": ("http://site.localhost/1k", instance)}
    for name in NAMES:
        targets[name] = (f"{scheme}://site.localhost:{ports[name]}/1k", f"127.0.0.1:{ports[name]}")
    found = {name: ([], []) for name in targets}
    for _ in range(ROUNDS):
        for name, target in targets.items():
            taken = sorted(times(*target))
            found[name][0].append(taken[len(taken) // 2])
            found[name][1].append(taken[len(taken) * 99 // 100])
    middle = {name: [statistics.median(values) for values in found[name]] for name in found}
    print(f"{transport:5} 100 requests/s of 1k, us: p50 and p99 of each; what is added to direct access; 1 / ratio to nginx")
    for name, (p50, p99) in middle.items():
        print(f"        {name:8} {p50:6.0f} {p99:6.0f}   +{p50 - middle['direct'][0]:.0f} +{p99 - middle['direct'][1]:.0f}")
    added = {name: [value - direct for value, direct in zip(middle[name], middle["direct"])] for name in NAMES}
    print(f"        nginx/epiniod of what is added at p50: {added['nginx'][0] / max(added['epiniod'][0], 1):.2f}", flush=True)


def connect(name):
    stream = socket.create_connection(("127.0.0.1", ports[name]), timeout=10)
    if transport == "tls":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = context.wrap_socket(stream, server_hostname="site.localhost")
    stream.sendall(b"GET /1k HTTP/1.1\r\nHost: site.localhost\r\n\r\n")
    text = b""
    while b"\r\n\r\n" not in text or len(text.split(b"\r\n\r\n", 1)[1]) < 1024:
        text += stream.recv(4096)
    assert text.startswith(b"HTTP/1.1 200")
    return stream


def idle(number=1000):
    for name in NAMES:
        # What the first connections leave behind is not theirs alone.
        for stream in [connect(name) for _ in range(8)]:
            stream.close()
        # Memory that is not used is given back after a quarter of a minute.
        time.sleep(18)
        before, shared, anonymous = memory(name), proportional(name), memory(name, "RssAnon")
        streams = [connect(name) for _ in range(number)]
        # Those to the instance have ended.
        time.sleep(3)
        after, grown = memory(name), memory(name, "RssAnon") - anonymous
        print(
            f"{transport:5} {name:8} RSS {before / 1024:.1f} MB (PSS {shared / 1024:.1f}, anonymous {anonymous / 1024:.1f}), "
            f"with {number} idle connections {after / 1024:.1f} MB: {grown / number:.1f} KiB for each",
            flush=True,
        )
        for stream in streams:
            stream.close()
        time.sleep(18)
        print(f"{'':14} RSS {memory(name) / 1024:.1f} MB when they have gone", flush=True)


if wanted(f"{transport}-idle"):
    idle()
sizes = [(size, connections) for size in ("1k", "1m") for connections in (32, 1000)]
if any(wanted(f"{transport}-{size}-{connections}") for size, connections in sizes):
    print("             conn.      requests/s           ratio   us of processor/request       ratio   RSS, MB    failed")
    print("                      epiniod     nginx            epiniod    nginx", flush=True)
for size, connections in sizes:
    if wanted(f"{transport}-{size}-{connections}"):
        throughput(size, connections)
if wanted(f"{transport}-latency"):
    latency()
