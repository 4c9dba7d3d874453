"""What the bench scenario measured: medians, and medians of the ratios of each round."""

import json
import statistics

MIB = 1 << 20


def read_samples(path):
    """{what: values in the order of the rounds}: microseconds one way, and bytes per second."""
    samples = {"raw latency": [], "recua latency": [], "raw bandwidth": [], "recua bandwidth": [],
               "perftest bandwidth": []}
    for line in path.read_text().splitlines():
        what, _, text = line.partition(" ")
        if what == "raw_latency":
            samples["raw latency"].append(json.loads(text)["p50_us"])
        elif what == "raw_bandwidth":
            samples["raw bandwidth"].append(json.loads(text)["mb_per_s"] * 1e6)
        elif what == "perftest_bandwidth":
            samples["perftest bandwidth"].append(float(text) * MIB)  # Its MB are MiB.
        elif what == "recua":
            rdma = next(each for each in json.loads(text)["transports"] if each["transport"] == "rdma")
            samples["recua latency"].append(rdma["latency"][0]["p50_us"])
            samples["recua bandwidth"].append(rdma["bandwidth"]["bytes_per_second"])
    return samples


def table(samples):
    latency, bandwidth = samples["recua latency"], samples["recua bandwidth"]
    lines = ["| 8 KiB one way, 1 MiB bandwidth | recua | reference | ratio, median of rounds | rounds |",
             "| --- | --- | --- | --- | --- |"]
    for name, ours, theirs, unit in (
            ("latency, raw verbs", latency, samples["raw latency"], "us"),
            ("bandwidth, ib_write_bw", bandwidth, samples["perftest bandwidth"], "MB/s"),
            ("bandwidth, raw verbs", bandwidth, samples["raw bandwidth"], "MB/s")):
        scale = 1.0 if unit == "us" else 1e-6
        ratios = [our / their for our, their in zip(ours, theirs)]
        lines.append(f"| {name} | {statistics.median(ours) * scale:.1f} {unit} | "
                     f"{statistics.median(theirs) * scale:.1f} {unit} | {statistics.median(ratios):.2f} "
                     f"({min(ratios):.2f} to {max(ratios):.2f}) | {len(ratios)} |")
    return "\n".join(lines)
