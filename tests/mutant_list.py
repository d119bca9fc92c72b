"""The faults of :mod:`tests.mutants`: a file, a text in it, the text that replaces it, and the tests that must fail."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Args:
        file: the file, from the root of the checkout.
        old: a text that is in the file once.
        new: what replaces it.
        tests: tests, or files of tests, of which one must fail.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


LOSSES = tuple(f"tests/fedkd/losses/test_{name}.py" for name in ("losses", "distillation_loss_values", "distillation_losses"))
CLIENT_LOSSES = ("tests/strategies/test_client_losses.py",)
FEDGEN = ("tests/strategies/test_fedgen_draws.py", "tests/strategies/test_fedgen.py")
SCAFFOLD = ("tests/strategies/test_scaffold.py",)
LOOP = ("tests/fedkd/training/test_loop.py",)
AVERAGING = ("tests/strategies/test_averaging.py",)
SAMPLING = ("tests/fedkd/federation/test_client_sampling.py",)
CHECKPOINT = ("tests/fedkd/test_checkpoint.py", "tests/fedkd/test_files.py")
RESUME = tuple(
    f"tests/simulations/federation/test_resume.py::test_{name}"
    for name in ("the_checkpoint_of_another_configuration_is_refused", "killed_before_the_checkpoint")
)
LAWS = ("tests/fedkd/partition/test_laws.py", "tests/fedkd/partition/test_label_skew_partitions.py")
QUANTITY = ("tests/fedkd/partition/test_quantity_skew_partitions.py",)
STATISTICS = ("tests/simulations/reports/test_statistics.py",)
SKEW = ("tests/fedkd/metrics/test_label_skew.py",)
FEDDISTILL = ("tests/strategies/test_feddistill.py",)
FEDFTG = ("tests/strategies/test_fedftg.py",)
FEDDF = ("tests/strategies/test_feddf.py",)

_ROWS: list[tuple[str, str, str, tuple[str, ...]]] = [
    # losses: signs, factors, directions, detached parts
    ("fedkd/losses/kl.py", "(log_p - log_q)).sum(-1)", "(log_q - log_p)).sum(-1)", LOSSES),
    ("fedkd/losses/kl.py", "temperature**2 * kl", "temperature * kl", LOSSES),
    ("fedkd/losses/cross_entropy.py", "return -logits.log_softmax", "return logits.log_softmax", LOSSES),
    ("fedkd/losses/decoupled_kl.py", "return target + beta * non_target", "return target - beta * non_target", LOSSES),
    ("fedkd/losses/decoupled_kl.py", "(index >= y[:, None])", "(index > y[:, None])", LOSSES),
    ("fedkd/losses/decoupled_kl.py", "return temperature**2 * kl_divergence(p, q)", "return kl_divergence(p, q)", LOSSES),
    ("fedkd/losses/diversity.py", "(-(output_distances", "((output_distances", LOSSES),
    ("fedkd/losses/attention_transfer.py", ".abs().pow(power).mean(1)", ".abs().pow(power).amax(1)", LOSSES),
    ("fedkd/losses/probabilistic_transfer.py", "-d / d.detach().mean()", "-d / d.mean()", LOSSES),
    ("fedkd/losses/contrastive.py", "F.cosine_similarity(z, far) - F.cosine_similarity(z, near)",
     "F.cosine_similarity(z, near) - F.cosine_similarity(z, far)", LOSSES + CLIENT_LOSSES),
    ("fedkd/losses/hint.py", ".square().mean(-1)", ".abs().mean(-1)", LOSSES),
    # strategies: what clients minimize
    ("strategies/fedprox.py", "self.mu / 2 * distance", "self.mu * distance", CLIENT_LOSSES),
    ("strategies/fedprox.py", "value + self.mu", "value - self.mu", CLIENT_LOSSES),
    ("strategies/fedntd.py", "+ self.beta * distance", "- self.beta * distance", CLIENT_LOSSES),
    ("strategies/moon.py", "+ batch.mu * contrast", "- batch.mu * contrast", CLIENT_LOSSES),
    ("strategies/moon.py", '{**kept, "previous": trained}', '{**kept, "previous": client_state["previous"]}', CLIENT_LOSSES),
    ("strategies/fedgkd.py", "batch.gamma / 2 * distance", "batch.gamma * distance", CLIENT_LOSSES),
    ("strategies/fedgkd.py", "[: self.buffer]", "[: self.buffer - 1]", CLIENT_LOSSES),
    ("fedkd/prototype_sharing.py", '* prototypes["known"][batch.y]', "", CLIENT_LOSSES),
    ("strategies/fedproto.py", 'fresh, before["mean"])', "fresh, fresh)", CLIENT_LOSSES),
    ("strategies/scaffold.py", "(server[name] - own[name])", "(own[name] - server[name])", SCAFFOLD),
    ("strategies/scaffold.py", "(w - w.detach())", "w", SCAFFOLD),
    ("strategies/scaffold.py", "/ reach - c for", "/ reach + c for", SCAFFOLD),
    ("fedkd/training/optimizers.py", "(1 - momentum**steps)", "(1 - momentum ** (steps - 1))", SCAFFOLD),
    ("strategies/feddistill.py", "self.gamma if server_round > 1 else 0.0", "self.gamma", FEDDISTILL),
    ("strategies/feddistill.py", "(clients - batch.mine).clamp", "clients.clamp", FEDDISTILL),
    # FedGen
    ("strategies/fedgen.py", "model.head(batch.latent).detach()", "model.head(batch.latent)", FEDGEN),
    ("strategies/fedgen.py", "+ batch.beta * latent", "- batch.beta * latent", FEDGEN),
    ("strategies/fedgen.py", "return teacher + self.eta * spread", "return teacher - self.eta * spread", FEDGEN),
    ("strategies/fedgen.py", "self.coefficient_decay ** (server_round - 1)", "self.coefficient_decay**server_round", FEDGEN),
    ("strategies/fedgen.py", "self.generator_lr_decay ** (server_round - 1)", "self.generator_lr_decay**server_round", FEDGEN),
    ("strategies/fedgen.py", "or server_round > 1)", "or server_round > 2)", FEDGEN),
    ("strategies/fedgen.py", "self.client_batch_size / client.batch_size", "client.batch_size / self.client_batch_size", FEDGEN),
    ("strategies/fedgen.py", "(1 + counts.to(server.dtype)).sum(0)", "(1 + counts.to(server.dtype)).sum()", FEDGEN),
    ("strategies/fedgen.py", 'state["seen"]["counts"] + counts.sum(0)', "counts.sum(0)", FEDGEN),
    # distillation on the server
    ("strategies/fedftg.py", "value = -discrepancy +", "value = discrepancy +", FEDFTG),
    ("strategies/fedftg.py", "value = -(batch.target * log_q)", "value = (batch.target * log_q)", FEDFTG),
    ("strategies/feddf.py", "logits.softmax(-1).mean(0)", "logits.softmax(-1).amax(0)", FEDDF),
    # averaging, and how long clients train
    ("fedkd/federation/aggregation.py", "torch.tensor(weights, dtype=first", "torch.tensor(list(weights)[::-1], dtype=first", AVERAGING),
    ("fedkd/federation/aggregation.py", "[size / total for size in sizes]", "[1 / len(sizes) for size in sizes]", AVERAGING),
    ("fedkd/strategy.py", 'if self.aggregation == "examples" else 1', 'if self.aggregation != "examples" else 1', AVERAGING),
    ("fedkd/strategy.py", "max(rounds[self.lr_schedule] - 1, 0)", "rounds[self.lr_schedule]", AVERAGING),
    ("fedkd/training/loop.py", "rate * schedule[number]", "rate * schedule[0]", FEDDF + LOOP),
    ("fedkd/training/loop.py", "sums[name] + metric if name", "metric if name", LOOP),
    ("fedkd/training/loop.py", "    restore_optimizer(optimizer, names, optimizer_state or {})\n", "", LOOP),
    ("fedkd/training/loop.py", 'if sums and not torch.isfinite(sums["loss"]):', "if False:", LOOP),
    ("fedkd/training/optimizers.py", 'group["lr"] = group["lr"] * factor', 'group["lr"] = factor', LOOP),
    # sampling, partitions, seeds
    ("fedkd/federation/client_sampling.py", "p=sizes / sizes.sum()", "p=None", SAMPLING),
    ("fedkd/federation/client_sampling.py", "server_round < self.new_clients_join_round else",
     "server_round <= self.new_clients_join_round else", SAMPLING),
    ("fedkd/federation/client_sampling.py", "self.trace[(server_round - 1) %", "self.trace[server_round %", SAMPLING),
    ("fedkd/partition/common.py", "np.cumsum(size))[:-1]", "np.cumsum(size))[1:]", LAWS),
    ("fedkd/partition/common.py", "smallest >= min_size:", "smallest >= min_size - 1:", LAWS + QUANTITY),
    ("fedkd/seed.py", '"/".join((str(self.root), *self.path))', '"".join((str(self.root), *self.path))', ("tests/fedkd/test_seed.py",)),
    ("fedkd/metrics/label_skew.py", "2 * np.arange(number) - (number - 1)", "2 * np.arange(number) - number", SKEW),
    # run folders: durable files, resumed runs, digests
    ("fedkd/files.py", "        os.fsync(file.fileno())\n", "", CHECKPOINT),
    ("fedkd/files.py", '    with open(temporary, "wb") as file:',
     '    temporary = path\n    with open(temporary, "wb") as file:', CHECKPOINT),
    ("fedkd/checkpoint.py", '"finished": checkpoint.round == rounds', '"finished": checkpoint.round >= rounds - 1', CHECKPOINT),
    ("simulations/run_folder/folder.py", 'if header["config"] != self.key', "if False", RESUME),
    ("simulations/run_folder/csv_rows.py", "<= server_round]", "<= server_round + 1]", RESUME),
    ("simulations/setup/simulation.py", ', "partition": index_digest(*indices)', "",
     ("tests/simulations/run_folder/test_folder.py",)),
    # statistics of reports
    ("simulations/reports/statistics.py", "stdtrit(n - 1, 0.975)", "stdtrit(n, 0.975)", STATISTICS),
    ("simulations/reports/statistics.py", "np.std(values, axis=0, ddof=1) / np.sqrt(n)",
     "np.std(values, axis=0, ddof=0) / np.sqrt(n)", STATISTICS),
    ("simulations/reports/statistics.py", 'method="holm")', 'method="bonferroni")', STATISTICS),
    ("simulations/reports/summary.py", "values[-LAST_ROUNDS:]", "values[-LAST_ROUNDS - 1 :]",
     ("tests/simulations/reports/test_builder.py::test_only_evaluated_rounds_count_and_the_last_one_is_named",)),
]  # fmt: skip

MUTANTS = tuple(Mutant(*row) for row in _ROWS)
"""All mutants."""
