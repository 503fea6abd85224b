import base64
import html
import json
import re

import numpy as np
from safetensors.torch import load_file

import small_tinyvla
from simplevla.evaluation.provenance import policy_fingerprint
from simplevla.evaluation.result import Broken, EvaluationResult, Outcome, write_result
from simplevla.report.choice import choose_states
from simplevla.report.page import write_report
from simplevla.report.videos import encode_video
from simplevla.rollout.crew import Errors


def evaluation(flags, **changes):
    values = {
        "suite": "toy",
        "split": "test",
        "protocol": {"renderer": "egl"},
        "horizons": dict.fromkeys(flags, 30),
        "greedy": True,
        "temperature": None,
        "seed": 0,
        "episodes": tuple(
            Outcome(task=task, initial_state=state, success=flag == "1", env_steps=5)
            for task, marks in flags.items()
            for state, flag in enumerate(marks)
        ),
        "wall_s": 1.0,
        "versions": {"torch": "2.13.0"},
        "commit": "0123abcd",
    }
    return EvaluationResult(**{**values, **changes})


def text_of(page):
    body = page.read_text().split("<body>")[1]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def full_run(run):
    write_result(run / "eval" / "before.json", evaluation({"lift": "1000000000", "push": "1110000000"}))
    write_result(run / "eval" / "after.json", evaluation({"lift": "0111111111", "push": "1111111110"}))
    (run / "config.json").write_text(json.dumps({"updates": 2, "sampling": {"groups": 24}}))
    (run / "environment.json").write_text(json.dumps({"commit": "0123abcd", "cpu_count": 2}))
    rows = [
        {"update": 0, "eval_success": 0.2},
        {"update": 1, "train_success": 0.3, "episodes_total": 1500, "env_steps_total": 30000, "elapsed_s": 60.0},
        {"update": 2, "train_success": 0.6, "episodes_total": 3000, "env_steps_total": 60000, "elapsed_s": 150.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "videos").mkdir()
    for prefix, success in (("before", False), ("after", True)):
        film(run, prefix, [("lift", 1, success, 5)])


def film(run, prefix, episodes):
    data, ending = encode_video([np.zeros((8, 8, 3), np.uint8)] * 3, 10.0)
    clips = [
        {
            "task": task,
            "instruction": f"{task} the <b>red</b> block",
            "initial_state": state,
            "success": success,
            "env_steps": env_steps,
            "file": f"{prefix}_{task}_{state:03d}{ending}",
        }
        for task, state, success, env_steps in episodes
    ]
    for clip in clips:
        (run / "videos" / clip["file"]).write_bytes(data)
    (run / "videos" / f"{prefix}.json").write_text(json.dumps({"clips": clips}))


def test_the_page_says_what_rl_did(tmp_path):
    full_run(tmp_path)
    text = text_of(write_report(tmp_path))
    # before 4 of 20: Wilson 8.1 to 41.6 %; after 18 of 20: 69.9 to 97.2 %
    assert "Success before RL 20.0 % 95 % interval 8.1 to 41.6 % 4 of 20 episodes" in text
    assert "Success after RL 90.0 % 95 % interval 69.9 to 97.2 % 18 of 20 episodes" in text
    # only before: lift 0; only after: lift 1 to 9 and push 3 to 8, so p = 2 (1 + 16) / 2^16 = 0.00052
    assert "p = 0.0005" in text
    assert "15 solved only after, 1 only before, 3 both, 1 neither" in text
    # per task: lift 9 against 1: 2 (1 + 10) / 2^10 = 0.0215; push 6 against 0: 2 / 2^6 = 0.0312
    assert "lift 10.0 % 1.8 to 40.4 % 10 90.0 % 59.6 to 98.2 % 10 1 9 0.0215 30" in text
    assert "push 30.0 % 10.8 to 60.3 % 10 90.0 % 59.6 to 98.2 % 10 0 6 0.0312 30" in text
    assert "2 updates of RL, 3,000 episodes, 60,000 env steps, 2.5 minutes." in text
    assert "sampling.groups 24" in text
    assert "Not in this run's folder" not in text


def test_the_page_loads_nothing_from_elsewhere(tmp_path):
    full_run(tmp_path)
    page = write_report(tmp_path).read_text()
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)["']|url\(([^)]*)\)""", page)
    assert len(addresses) == 5  # icon, bars, one curve, two videos
    assert all((a or b).startswith("data:") for a, b in addresses)
    assert "@import" not in page
    assert "<script" not in page


def test_videos_are_inside_the_page_side_by_side(tmp_path):
    full_run(tmp_path)
    page = write_report(tmp_path).read_text()
    inside = [base64.b64decode(data) for data in re.findall(r'<video src="data:video/mp4;base64,([^"]*)"', page)]
    assert inside == [(tmp_path / "videos" / f"{prefix}_lift_001.mp4").read_bytes() for prefix in ("before", "after")]
    assert "lift the &lt;b&gt;red&lt;/b&gt; block" in page
    assert "before: not solved in 5 env steps after: solved in 5 env steps" in text_of(tmp_path / "report.html")


def test_missing_parts_are_said(tmp_path):
    write_result(tmp_path / "eval" / "before.json", evaluation({"lift": "10"}))
    text = text_of(write_report(tmp_path))
    assert "Success before RL 50.0 %" in text
    assert "Success after RL" not in text
    for part in ("eval/after.json", "metrics.jsonl", "videos/before.json", "config.json", "environment.json"):
        assert part in text.split("Not in this run's folder:")[1]


def test_evaluations_that_cannot_be_paired_are_shown_with_the_reason(tmp_path):
    write_result(tmp_path / "eval" / "before.json", evaluation({"lift": "10"}))
    write_result(tmp_path / "eval" / "after.json", evaluation({"lift": "11"}, protocol={"renderer": "osmesa"}))
    text = text_of(write_report(tmp_path))
    assert "Before and after can't be paired: protocol 'renderer' differs: 'egl' in before, 'osmesa' in after" in text
    assert "not paired" in text
    assert "McNemar 's" not in text


def test_no_valid_episode_is_no_rate(tmp_path):
    broken = evaluation({"lift": ""}, broken=(Broken("lift", 0),))
    write_result(tmp_path / "eval" / "after.json", broken)
    text = text_of(write_report(tmp_path))
    assert "none no valid episode (n = 0)" in text
    assert "Episodes after RL that the environment broke, and that are in no rate: 1." in text


def test_a_run_that_stopped_says_why(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "train_success": 0.0}\n')
    (tmp_path / "stopped.json").write_text('{"reason": "no_signal", "message": "every group failed: better SFT"}')
    assert "The run stopped before its last update: every group failed: better SFT" in text_of(write_report(tmp_path))


def test_states_are_chosen_without_knowing_the_outcome_and_one_of_each_kind():
    before = evaluation({"lift": "1001", "push": "111", "pull": "000"})
    after = evaluation({"lift": "1011", "push": "100", "pull": "000"})
    choice = choose_states(before, after)
    assert choice.neutral == [("lift", 0), ("push", 0), ("pull", 0)]
    # lift 2; push 1 and 2; lift 0 (shown already) and 3, push 0 (likewise); lift 1, pull 0 (likewise) to 2
    assert choice.counts == {"gained": 1, "lost": 2, "solved both times": 3, "failed both times": 4}
    assert choice.of_kind == {
        "gained": ("lift", 2),
        "lost": ("push", 1),
        "solved both times": ("lift", 3),
        "failed both times": ("lift", 1),
    }
    assert choice.states == [("lift", 0), ("push", 0), ("pull", 0), ("lift", 2), ("push", 1), ("lift", 3), ("lift", 1)]


def test_the_neutral_states_are_the_same_whatever_the_outcomes():
    outcomes = ["0000", "1111", "0110", "1001"]
    chosen = {
        tuple(choose_states(evaluation({"lift": a, "push": b}), evaluation({"lift": c, "push": d})).neutral)
        for a in outcomes
        for b in outcomes
        for c in outcomes
        for d in outcomes
    }
    assert chosen == {(("lift", 0), ("push", 0))}


def test_a_kind_without_states_and_one_that_is_all_shown_already():
    choice = choose_states(evaluation({"lift": "01", "push": "00"}), evaluation({"lift": "11", "push": "00"}))
    assert choice.counts == {"gained": 1, "lost": 0, "solved both times": 1, "failed both times": 2}
    assert choice.of_kind == {
        "gained": ("lift", 0),
        "lost": None,
        "solved both times": ("lift", 1),
        "failed both times": ("push", 1),
    }
    assert choice.states == [("lift", 0), ("push", 0), ("lift", 1), ("push", 1)]


def test_a_state_that_broke_is_not_filmed():
    before = evaluation({"lift": "0000"})
    after = evaluation({"lift": "1111"})
    after = evaluation({"lift": ""}, episodes=after.episodes[1:], broken=(Broken("lift", 0),))
    choice = choose_states(before, after)
    assert choice.neutral == [("lift", 1)]
    assert choice.counts["gained"] == 3


def test_the_page_says_how_its_films_were_chosen_and_shows_what_got_worse(tmp_path):
    full_run(tmp_path)
    film(tmp_path, "before", [("lift", 0, True, 5), ("push", 0, True, 5), ("lift", 1, False, 5), ("push", 1, True, 5)])
    film(tmp_path, "after", [("lift", 0, False, 5), ("push", 0, True, 5), ("lift", 1, True, 5), ("push", 1, True, 5)])
    text = text_of(write_report(tmp_path))
    neutral, kinds = text.split("Films chosen without knowing the outcome")[1].split("One film of each kind of outcome")
    assert "The first evaluated initial state of each task" in neutral
    assert "lift, initial state 0 before: solved in 5 env steps after: not solved in 5 env steps" in neutral
    assert "push, initial state 0 before: solved in 5 env steps after: solved in 5 env steps" in neutral
    assert "initial state 1" not in neutral
    assert "gained 15, lost 1, solved both times 3, failed both times 1." in kinds
    assert "The first state of each kind" in kinds
    assert "gained 15 · lift the <b>red</b> block · lift, initial state 1 before: not solved in 5" in kinds
    assert "lost 1 · lift the <b>red</b> block · lift, initial state 0 Shown above." in kinds
    assert "solved both times 3 · push the <b>red</b> block · push, initial state 1 before: solved in 5" in kinds
    # push 9 was not filmed
    assert "failed both times 1 · push, initial state 9 not recorded before not recorded after" in kinds
    # each film once, although the lost one belongs to both sections
    assert (tmp_path / "report.html").read_text().count("<video") == 8


def test_a_kind_of_which_there_is_none_says_so(tmp_path):
    full_run(tmp_path)
    write_result(tmp_path / "eval" / "after.json", evaluation({"lift": "1111111111", "push": "1111111110"}))
    assert "lost 0 No initial state is of this kind. solved both times 4" in text_of(write_report(tmp_path))


def test_films_of_other_states_are_set_apart(tmp_path):
    full_run(tmp_path)
    film(tmp_path, "before", [("lift", 7, False, 5)])
    film(tmp_path, "after", [("lift", 7, True, 5)])
    text = text_of(write_report(tmp_path))
    others = text.split("Films of other states How they were chosen isn't known.")[1]
    assert "lift, initial state 7 before: not solved in 5 env steps after: solved in 5 env steps" in others
    assert "initial state 7" not in text.split("Films of other states")[0]


def test_a_film_that_is_not_the_evaluation_s_episode_says_so(tmp_path):
    full_run(tmp_path)
    assert "disagree" not in text_of(write_report(tmp_path))
    film(tmp_path, "after", [("lift", 1, False, 30)])
    text = text_of(write_report(tmp_path))
    disagreement = "Film and evaluation disagree: the evaluation's episode was solved in 5 env steps."
    assert f"after: not solved in 30 env steps {disagreement}" in text
    assert text.count("disagree") == 1
    film(tmp_path, "after", [("lift", 1, True, 6)])
    assert f"after: solved in 6 env steps {disagreement}" in text_of(write_report(tmp_path))


def test_states_are_called_held_out_only_where_they_are(tmp_path):
    full_run(tmp_path)
    assert "toy, test initial states, greedy." in text_of(write_report(tmp_path))
    before = evaluation({"lift": "10"}, held_out="yes")
    after = evaluation(
        {"lift": "11"}, held_out="no: training may have met 1 of these", differences=("camera 'a' had 8 x 8",)
    )
    write_result(tmp_path / "eval" / "before.json", before)
    write_result(tmp_path / "eval" / "after.json", after)
    text = text_of(write_report(tmp_path))
    assert "held out)" not in text
    assert "Evaluation after RL, held out: no: training may have met 1 of these." in text
    assert "Evaluation after RL, not as trained: camera 'a' had 8 x 8." in text
    assert "Evaluation before RL" not in text
    assert "held out before yes" in text
    write_result(tmp_path / "eval" / "after.json", evaluation({"lift": "11"}, held_out="yes"))
    text = text_of(write_report(tmp_path))
    assert "toy, test initial states (held out), greedy." in text
    assert "About these rates" not in text


def test_evaluations_of_other_policies_or_ways_to_act_are_said(tmp_path):
    full_run(tmp_path)
    (tmp_path / "environment.json").write_text(json.dumps({"start_policy_sha256": "a"}))
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "model.safetensors").write_bytes(b"weights")
    for name, sha256 in (("before", "a"), ("after", policy_fingerprint(tmp_path / "policy"))):
        write_result(
            tmp_path / "eval" / f"{name}.json", evaluation({"lift": "10"}, held_out="yes", policy_sha256=sha256)
        )
    assert "About these rates" not in text_of(write_report(tmp_path))
    (tmp_path / "policy" / "model.safetensors").write_bytes(b"others")
    sampled = evaluation({"lift": "10"}, held_out="yes", policy_sha256="b", greedy=False, temperature=1.0)
    write_result(tmp_path / "eval" / "before.json", sampled)
    text = text_of(write_report(tmp_path))
    assert "eval/before.json is not of the policy that this run started from" in text
    assert "eval/after.json is not of the policy in this run's folder" in text
    assert "The policy before RL acted sampled at temperature 1, the one after greedy." in text


def test_what_broke_and_what_nobody_measured_is_said(tmp_path):
    full_run(tmp_path)
    errors = Errors()
    errors.add("environment raised RuntimeError", "RuntimeError: it fell", 3)
    broken = evaluation({"lift": "11", "push": ""}, held_out="yes", broken=(Broken("push", 0),), errors=errors)
    write_result(tmp_path / "eval" / "after.json", broken)
    text = text_of(write_report(tmp_path))
    assert "what the environment broke: environment raised RuntimeError (3 times, last: RuntimeError: it fell)." in text
    assert "Evaluation after RL has no valid episode of push: the overall rate is without." in text


def test_rows_that_are_gone_are_said(tmp_path):
    full_run(tmp_path)
    rows = [{"update": update} for update in (0, 1, 2, 5, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "rows of 2 updates in metrics.jsonl, of 3, 4 for example" in text_of(write_report(tmp_path))


def head_of(page):
    text = page.read_text()
    return re.search(r"<title>(.*?)</title>", text)[1], text_of(page).split(" toy, test")[0].strip()


def test_the_head_says_recipe_policy_and_date(tmp_path):
    run = tmp_path / "demo" / "rl"
    run.mkdir(parents=True)
    full_run(run)
    (run / "config.json").write_text(json.dumps({"title": "tabletop_nano", "suite": {"name": "tabletop"}}))
    (run / "environment.json").write_text(json.dumps({"date": "2026-03-04"}))
    small_tinyvla.make().save(run / "policy")
    size = sum(tensor.numel() for tensor in load_file(run / "policy" / "model.safetensors").values())
    parts = f"tinyvla, head tokens, {size / 1e6:.3g} M parameters"
    title, head = head_of(write_report(run))
    assert title == f"tabletop_nano: before and after RL ({parts}, 4 March 2026, run demo/rl)"
    assert head == f"tabletop_ nano: before and after RL {parts} · 4 March 2026 · run demo/rl"
    # Without a recipe the suite; without a suite the folder.
    (run / "config.json").write_text(json.dumps({"suite": {"name": "tabletop"}}))
    assert head_of(write_report(run))[0].startswith("tabletop: before")
    (run / "config.json").write_text("{}")
    assert head_of(write_report(run))[0].startswith("rl: before")


def test_env_steps_are_compared_on_states_that_both_solve(tmp_path):
    full_run(tmp_path)

    def timed(steps):
        episodes = tuple(
            Outcome(task=task, initial_state=state, success=n < 100, env_steps=n)
            for task, numbers in steps.items()
            for state, n in enumerate(numbers)
        )
        return evaluation(dict.fromkeys(steps, ""), episodes=episodes)

    write_result(tmp_path / "eval" / "before.json", timed({"lift": [50, 60, 100, 80], "push": [100, 30, 90]}))
    write_result(tmp_path / "eval" / "after.json", timed({"lift": [40, 70, 20, 50], "push": [10, 30, 100]}))
    text = text_of(write_report(tmp_path))
    # Pairs: lift 50/40, 60/70, 80/50; push 30/30.
    assert (
        "On the 4 initial states that both policies solve: a mean of 55.0 env steps before RL and 47.5 after RL, a median of "
        "55.0 and 45.0. It is faster after RL in 2 of them, slower in 1."
    ) in text
    assert "lift 3 63.3 53.3 60.0 50.0 2 1 push 1 30.0 30.0 30.0 30.0 0 0 overall 4 55.0 47.5 55.0 45.0 2 1" in text
    write_result(tmp_path / "eval" / "after.json", timed({"lift": [100, 100, 20, 100], "push": [10, 100, 100]}))
    assert "No initial state is solved by both policies" in text_of(write_report(tmp_path))


def test_evaluations_that_cannot_be_paired_have_no_env_steps_to_compare(tmp_path):
    write_result(tmp_path / "eval" / "before.json", evaluation({"lift": "10"}))
    write_result(tmp_path / "eval" / "after.json", evaluation({"lift": "11"}, protocol={"renderer": "osmesa"}))
    assert "Env steps to success" not in text_of(write_report(tmp_path))


def run_after_imitation(folder):
    run, imitated = folder / "rl", folder / "sft" / "policy"
    run.mkdir()
    full_run(run)
    imitated.mkdir(parents=True)
    (imitated / "model.safetensors").write_bytes(b"weights")
    (run / "config.json").write_text(json.dumps({"policy": str(imitated)}))
    (run / "environment.json").write_text(json.dumps({"start_policy_sha256": policy_fingerprint(imitated)}))
    return run, imitated


def test_the_imitation_that_the_policy_came_from_is_shown(tmp_path):
    run, imitated = run_after_imitation(tmp_path)
    missing = f"No curve: {imitated.parent} has no metrics.jsonl: the first policy isn't from a run of ours"
    assert missing in text_of(write_report(run))
    rows = [{"batch": 25, "loss": 2.0}, {"batch": 25, "validation_loss": 2.5}, {"batch": 25, "success": 0.1}]
    metrics = imitated.parent / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = text_of(write_report(run))
    assert "Imitation loss" in text
    assert "Success while it imitated, %" in text
    assert "No curve" not in text
    (imitated / "model.safetensors").write_bytes(b"others")
    assert f"No curve: the policy in {imitated} isn't the one that this run started from" in text_of(write_report(run))
    metrics.write_text('{"update": 1}\n')
    assert "is no run of `simplevla sft`" in text_of(write_report(run))


def test_wide_tables_scroll_and_bars_have_their_rates(tmp_path):
    full_run(tmp_path)
    page = write_report(tmp_path).read_text()
    body = page.split("<body>")[1]
    # Success per task and env steps; the other tables are facts, whose text wraps.
    tables = re.findall(r'(<div class="wide"[^>]*>)?<table( class="facts")?>', body)
    assert len(tables) == 5
    assert all(bool(scrolls) != bool(facts) for scrolls, facts in tables)
    assert body.count("Scroll sideways for all columns <span") == 2
    # lift before: 1 of 10, Wilson 1.8 to 40.4 %; push after: 9 of 10.
    assert 'style="width: 10.0%"></i><i class="interval" style="left: 1.8%; width: 38.6%"></i>' in body
    assert re.findall(r'class="fill" style="width: ([\d.]+)%"', body) == ["10.0", "90.0", "30.0", "90.0"]
