"""Tasks make what they claim: answers that are in the context, lengths within bounds."""

from __future__ import annotations

import random

import pytest

from recollect.errors import RecipeError
from recollect.evaluate import tasks
from recollect.evaluate.prompts import Encoder
from recollect.evaluate.runs import make_case
from recollect.evaluate.tasks import TASKS, Setting, sources
from recollect.evaluate.tasks.haystack import hide

LENGTH = 640
RECALL = ("needle", "needle-keys", "needle-values", "needle-queries", "turns", "variables")


@pytest.fixture(params=TASKS)
def case(request, encoder):
    return make_case(encoder, request.param, LENGTH, 0, 0)


def test_contexts_fill_the_length_and_never_exceed_it(case):
    assert 0.75 * LENGTH <= len(case.context_ids) <= LENGTH


def test_every_question_asks_and_scores_something(case):
    assert case.questions
    for question in case.questions:
        assert len(question.ids) > 0
        assert len(question.answer_ids) == len(question.scored)
        assert question.scored.any()


def test_a_case_depends_on_its_number_and_seed_alone(encoder):
    first, again, other, next_seed = (
        make_case(encoder, "needle-keys", LENGTH, seed, number)
        for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first.context == again.context
    assert len({first.context, other.context, next_seed.context}) == 3


@pytest.mark.parametrize("task", RECALL)
def test_every_scored_answer_stands_in_the_context(encoder, task):
    case = make_case(encoder, task, LENGTH, 3, 1)
    for question in case.questions:
        runs, run = [], []
        for token, scored in zip(question.answer_ids, question.scored, strict=True):
            if scored:
                run.append(token)
            elif run:
                runs.append(run)
                run = []
        for part in [*runs, run] if run else runs:
            assert encoder.tokenizer.decode(part).strip() in case.context


@pytest.mark.parametrize("task", RECALL)
def test_hidden_lines_are_at_the_depths_the_case_states(encoder, task):
    case = make_case(encoder, task, LENGTH, 0, 2)
    for depth in case.about["depths"]:
        start = round(depth * len(case.context))
        assert start == 0 or case.context[start - 1] == "\n"
        assert case.context[start] == "#"


def test_hidden_lines_keep_their_order(encoder):
    setting = Setting(encoder, 400, random.Random(5))
    text, depths = hide(setting, [f"# fact {n}\n" for n in range(6)])
    assert depths == sorted(depths)
    assert [line for line in text.splitlines() if line.startswith("# fact")] == [
        f"# fact {n}" for n in range(6)
    ]


def test_multi_query_names_all_keys_before_the_first_answer(encoder):
    case = make_case(encoder, "needle-queries", LENGTH, 0, 0)
    (question,) = case.questions
    asked = encoder.tokenizer.decode(question.ids)
    answer = encoder.tokenizer.decode(question.answer_ids)
    for line in answer.splitlines()[1:]:
        assert line.split()[1] in asked


def test_multi_turn_is_one_conversation(encoder):
    case = make_case(encoder, "turns", LENGTH, 0, 0)
    assert case.turns
    assert len(case.questions) == 3
    assert case.tokens > len(case.context_ids) + max(len(q.ids) for q in case.questions)


def test_common_words_are_the_most_frequent_ones(encoder):
    case = make_case(encoder, "common-words", LENGTH, 0, 0)
    listed = case.context.removeprefix("words = ").split(", ")
    counts = sorted((listed.count(word) for word in set(listed)), reverse=True)
    assert [listed.count(word) for word in case.about["words"]] == counts[:2]
    assert counts[0] > counts[1] > counts[2]


def test_code_completion_repeats_a_line_far_back(encoder):
    for number in range(3):
        case = make_case(encoder, "code", LENGTH, 0, number)
        assert case.about["line"] in case.context
        assert case.about["distance"] >= LENGTH // 8
        answer = encoder.tokenizer.decode(case.questions[0].answer_ids)
        assert answer.strip("\n") == case.about["line"]


def test_the_continuation_follows_the_context(encoder):
    case = make_case(encoder, "perplexity", 300, 0, 0)
    (question,) = case.questions
    ids = [*case.context_ids.tolist(), *question.ids.tolist(), *question.answer_ids.tolist()]
    text = encoder.tokenizer.decode(ids, skip_special_tokens=True)
    assert [line for line in text.splitlines()[3:8] if line.strip()]
    assert any(text.splitlines()[5] in file for file in sources.files())


def test_a_length_too_short_for_the_task_is_refused_in_words(encoder):
    with pytest.raises(RecipeError, match="too short"):
        tasks.find("needle-keys").case(Setting(encoder, 40, random.Random(0)))


def test_an_unknown_task_names_the_nearest(encoder):
    with pytest.raises(RecipeError, match="did you mean 'needle'"):
        tasks.find("needel")


def test_question_and_answer_make_one_text(encoder):
    ids, first, gap, second = encoder.parts("\nassert red_fox ", "123", " ", "45")
    whole = [*ids.tolist(), *first.tolist(), *gap.tolist(), *second.tolist()]
    assert encoder.tokenizer.decode(whole) == "\nassert red_fox 123 45"
    assert encoder.tokenizer.decode(second).strip() == "45"


def test_a_chat_template_surrounds_context_and_question(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>")
    with pytest.raises(RecipeError, match="no chat template"):
        Encoder(tokenizer, chat=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<user>{{ m['content'] }}</user>{% endfor %}<answer>"
    )
    encoder = Encoder(tokenizer, chat=True)
    case = make_case(encoder, "needle", 400, 0, 0)
    assert tokenizer.decode(case.context_ids).startswith("<user>")
    asked = tokenizer.decode(case.questions[0].ids)
    assert asked.rstrip().endswith("</user><answer>")
    assert "In the text above" in asked
