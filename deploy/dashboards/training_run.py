"""*Training run*: is it learning, is it fast, is its work safe?"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row

from deploy.dashboards.frame import Item, assemble, label_variable, promotions, restarts
from deploy.dashboards.panels import BAD, GOOD, PLAIN, WATCH, Query, graph, stat, timeline
from deploy.dashboards.queries import (
    ACCURACY_LIMITS,
    GOODPUT_LIMITS,
    STATES,
    gpu_busy,
    gpu_memory,
    max_of,
    quantile,
    rate_of,
    share_of_time,
    state_number,
)

RUN = 'run="$run"'
ENERGY = f'{RUN},figure="energy_score"'
KID_NAMES = "kid_unpaired_.*"  # `kid_lite0` of earlier versions was another, biased figure
IMAGES, TARGET = max_of("aalnet_run_images", RUN), max_of("aalnet_run_target_images", RUN)
IMAGES_PER_S = rate_of("aalnet_images_total", RUN)
ENERGY_RATIO = (
    f"{max_of('aalnet_evaluation_figure', ENERGY)} / {max_of('aalnet_evaluation_floor', ENERGY)}"
)
EVALUATION_S = (
    f"sum(aalnet_evaluation_seconds_sum{{{RUN}}}) / sum(aalnet_evaluation_seconds_count{{{RUN}}})"
)


def figure(names: str) -> str:
    """Figures of the last evaluation by name; `names`: a regular expression."""
    return max_of("aalnet_evaluation_figure", f'{RUN},figure=~"{names}"', "figure")


def floor(names: str) -> str:
    """What a figure is where the condition is given back unchanged."""
    return max_of("aalnet_evaluation_floor", f'{RUN},figure=~"{names}"', "figure")


PANELS: list[Item] = [
    Row("Now"),
    stat("State", "What the run is doing. `recovering`: its workers died, or wait for room on the "
         "cluster.", Query(state_number(RUN, "run"), "{{run}}"), texts=STATES),
    stat("Progress", "Images the state has seen, of those that the run ends at.",
         f"{IMAGES} / {TARGET}", unit="percentunit", decimals=1),
    stat("Time left", "At the speed of the last minutes. Nothing is shown while it stands still.",
         f"({TARGET} - {IMAGES}) / ({IMAGES_PER_S} > 0)", unit="s", decimals=0),
    stat("Goodput", "Share of the run's time, over all its starts, in steps that count. Rows "
         "below say where the rest went.", max_of("aalnet_goodput_ratio", RUN), unit="percentunit",
         decimals=1, limits=GOODPUT_LIMITS),
    stat("Checkpoint age", "Since the newest whole checkpoint (or, before the first, since the "
         "launch): what a crash would cost now.",
         f"time() - max(aalnet_checkpoint_timestamp_seconds{{{RUN}}})", unit="s", decimals=0,
         limits=[(0, GOOD), (3600, WATCH), (7200, BAD)]),
    stat("Non-finite", "Times that a term or gradient was NaN or infinite. The run stops at the "
         "first; lower the learning rate, or eta or gamma, and start it again.",
         f"max(max_over_time(aalnet_non_finite_total{{{RUN}}}[$__range]))", decimals=0,
         limits=[(0, GOOD), (1, BAD)]),
    stat("Energy score / floor", "`energy_score` on held-out pairs, over that of giving the "
         "condition back unchanged. Below 1 the model is worth something; lower is better.",
         ENERGY_RATIO, decimals=3, limits=[(0, GOOD), (0.9, WATCH), (1, BAD)]),
    stat("Spread", "Distance between samples of one condition over that to the target: about 1 is "
         "right. Below 0.1 the noise is ignored: eight samples are eight times the same picture.",
         max_of("aalnet_evaluation_spread_ratio", RUN), unit="percentunit", decimals=0,
         limits=[(0, BAD), (0.1, WATCH), (0.3, GOOD)]),
    stat("D is right", "Share of the sample-target pairs that D tells apart: what the loss sees. "
         "50 % is a draw; above 98 % D has won and G learns little.",
         f'max(aalnet_discriminator_accuracy_ratio{{{RUN},on="pairs"}})', unit="percentunit",
         decimals=1, limits=ACCURACY_LIMITS),
    stat("Workers", "Workers that told of themselves within ten seconds, and those wanted.",
         Query(max_of("aalnet_workers", RUN), "now"),
         Query(max_of("aalnet_workers_wanted", RUN), "wanted"), decimals=0),
    stat("Restarts", "Starts that went on from earlier ones, over all of the run.",
         f"sum(max by (cause) (aalnet_restarts_total{{{RUN}}}))", decimals=0,
         limits=[(0, GOOD), (1, WATCH), (10, BAD)]),
    stat("Lost work", "Images trained on again after restarts, in this process.",
         max_of("aalnet_lost_images_total", RUN), decimals=0, limits=[(0, GOOD), (1, WATCH)]),
    Row("Learning"),
    graph("Terms of the objective", "Raw terms, unweighted, mean since the log's line before: "
          "curves of runs with other weights compare. Likelihood, realism, entropy and reward are "
          "to rise; the others are penalties.",
          Query(max_of("aalnet_term", RUN, "term"), "{{term}}"), span=12),
    graph("Who is winning", "What D judges rightly. `pairs` is what the loss sees: 50 % is a "
          "draw, 100 % is D winning outright. Long above the dashed line, lower D's learning rate "
          "or raise r1.", Query(max_of("aalnet_discriminator_accuracy_ratio", RUN, "on"), "{{on}}"),
          unit="percentunit", limits=ACCURACY_LIMITS, span=12),
    graph("Gradient norms", "Of the summed gradient before clipping (at 5 by default), on a "
          "logarithmic scale. Growing steadily, it ends in a NaN.",
          Query(max_of("aalnet_gradient_norm", RUN, "side"), "{{side}}"), log_scale=True),
    graph("Learning rate", "The same on both sides: warm-up, plateau, linear decay.",
          Query(max_of("aalnet_learning_rate", RUN), "learning rate"), unit="sci"),
    graph("Distance of G from its average", "Relative to the moving average, which is what users "
          "sample from. It falls with the learning rate.",
          Query(max_of("aalnet_ema_distance_ratio", RUN), "distance"), unit="percentunit"),
    Row("Quality on held-out pairs"),
    graph("Energy score", "In features of pictures: distance to the target, less half of that "
          "between samples. Best for the true distribution alone, so neither an average nor a "
          "scatter can win; lower is better. The floor is giving the condition back unchanged.",
          Query(figure("energy_score"), "energy score"), Query(floor("energy_score"), "floor")),
    graph("Energy score of pixels", "The same, distances of pixels (root mean square).",
          Query(figure("pixel_energy_score"), "pixels"),
          Query(floor("pixel_energy_score"), "floor")),
    graph("Kernel distance", "Between samples and targets of other conditions, in features; lower "
          "is better, about 0 is a draw. The floor is giving the condition back unchanged.",
          Query(figure(KID_NAMES), "{{figure}}"), Query(floor(KID_NAMES), "floor"),
          log_scale=True),
    graph("Likeness", "Mean absolute difference from the target, of one sample and of the best of "
          "K. One sample far above the best of K is diversity at work.",
          Query(figure("l1|best_of_k_l1"), "{{figure}}"), Query(floor("l1"), "floor")),
    graph("Diversity", "Mean difference between samples of one condition. eta raises it, flatness "
          "lowers it.", Query(figure("diversity"), "diversity")),
    graph("Spread", "Distance between samples of one condition over that to the target: about 1 "
          "is right; below the dashed line the noise is ignored.",
          Query(max_of("aalnet_evaluation_spread_ratio", RUN), "spread"), unit="percentunit",
          limits=[(0, BAD), (0.1, GOOD)]),
    graph("Label following", "How far another label moves samples towards that label's targets: 0 "
          "not at all, 1 all the way. Absent where targets do not differ by label.",
          Query(figure("label_following"), "label following"), limits=[(0, BAD), (0.25, GOOD)]),
    graph("Structure", "Structural similarity with the target; 1 is the target itself.",
          Query(figure("ssim"), "ssim"), Query(floor("ssim"), "floor")),
    graph("Signal to noise", "Peak signal-to-noise ratio against the target, in decibels.",
          Query(figure("psnr"), "psnr"), Query(floor("psnr"), "floor"), unit="dB"),
    graph("Evaluations take", "Seconds of one evaluation with its sample grid; training stands "
          "still meanwhile. Evaluate more rarely (run.evaluate_every_images) if it costs too much.",
          Query(EVALUATION_S, "mean"), unit="s"),
    Row("Speed"),
    graph("Images per second", "Trained on by all workers together, work done again included.",
          Query(rate_of("aalnet_images_total", RUN), "images/s")),
    graph("Step time", "One step on each worker, without the wait for its batch: the median and "
          "the 95th percentile. One worker above the others slows all.",
          Query(quantile(0.5, "aalnet_step_seconds", RUN, "worker"), "worker {{worker}} p50"),
          Query(quantile(0.95, "aalnet_step_seconds", RUN, "worker"), "worker {{worker}} p95"),
          unit="s"),
    graph("Share of time lost to waiting", "Of each worker's time: waiting for data, and in the "
          "sums over workers (waiting for slower ones included). Data should stay below 1 %.",
          Query(share_of_time("aalnet_data_wait_seconds", RUN), "worker {{worker}} data"),
          Query(share_of_time("aalnet_communication_seconds", RUN), "worker {{worker}} sums"),
          unit="percentunit"),
    graph("Where the time went", "Seconds by part, over all starts of the run, stacked. "
          "`recovery` and `lost work` are what failures cost.",
          Query(max_of("aalnet_run_seconds", RUN, "part"), "{{part}}"), unit="s", stacked=True,
          span=12),
    graph("Goodput", "Share of the run's time, over all its starts, in steps that count.",
          Query(max_of("aalnet_goodput_ratio", RUN), "goodput"), unit="percentunit",
          limits=GOODPUT_LIMITS, span=12),
    Row("Workers"),
    timeline("States", "What the run was doing when.", Query(state_number(RUN, "run"), "{{run}}"),
             STATES),
    graph("Workers", "Those that told of themselves lately, and those wanted. Fewer than wanted "
          "for long: spot nodes are gone, or the quota is used up.",
          Query(max_of("aalnet_workers", RUN), "now"),
          Query(max_of("aalnet_workers_wanted", RUN), "wanted"), span=12),
    graph("Restarts", "By cause, over all of the run. `lost_node` and `preemption` are the "
          "cluster's doing, `crash` is ours or the data's.",
          Query(max_of("aalnet_restarts_total", RUN, "cause"), "{{cause}}"), stacked=True),
    graph("GPU busy", "Share of the last moment in which each worker's GPU ran a kernel. `no GPU` "
          "stands for a run on CPU (or a machine without NVML).",
          Query(gpu_busy(RUN, "worker"), "{{worker}}"), unit="percentunit"),
    graph("GPU memory", "`allocated` and `reserved` by each worker, `used` by all on that GPU, of "
          "`total`. `no GPU` stands for a run on CPU.",
          Query(gpu_memory(RUN, "worker, kind"), "{{worker}} {{kind}}"), unit="bytes"),
    Row("Checkpoints"),
    graph("Work at stake", "Images since the newest whole checkpoint, and the interval between "
          "two. Twice the interval: the storage does not keep up.",
          Query(f"{IMAGES} - max(aalnet_checkpoint_images{{{RUN}}})", "since the checkpoint"),
          Query(max_of("aalnet_checkpoint_interval_images", RUN), "interval")),
    graph("Checkpoint age", "Seconds since the newest checkpoint became whole.",
          Query(f"time() - max(aalnet_checkpoint_timestamp_seconds{{{RUN}}})", "age"), unit="s"),
    graph("Seconds for a checkpoint", "From the wish until it is whole, in the background.",
          Query(quantile(0.5, "aalnet_checkpoint_seconds", RUN), "p50"),
          Query(quantile(0.95, "aalnet_checkpoint_seconds", RUN), "p95"), unit="s"),
    graph("Stall", "Share of the time for which training stood still for checkpoints; it should "
          "stay below 1 %.", Query(rate_of("aalnet_checkpoint_stall_seconds_sum", RUN), "stall"),
          unit="percentunit", limits=[(0, PLAIN), (0.01, WATCH)]),
    graph("Written", "Bytes of checkpoints per second.",
          Query(rate_of("aalnet_checkpoint_written_bytes_total", RUN), "written"), unit="Bps"),
    graph("Uploads", "Checkpoints and pictures that are being written or wait, and tries that the "
          "storage refused.", Query(max_of("aalnet_upload_queue", RUN), "queue"),
          Query(max_of("aalnet_checkpoint_failures_total", RUN), "refused")),
]  # fmt: skip

BOARD = assemble(
    "Training run",
    "One run: what it learns, whether either side of the GAN wins, where its time goes, and "
    "whether its work is safe.",
    PANELS,
    variables=[label_variable("run", "aalnet_run_info", "Run")],
    annotations=[restarts(RUN), promotions()],
)
