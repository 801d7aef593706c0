"""Sentences that describe a hidden task: templates with synonyms in their slots, some of them held out."""

import random
from collections.abc import Sequence

# {say}: imperative; {text}: the text; {clause}: that the text has the attribute; {if_}, {else_}: conjunctions.
LABELLED = (
    "{Say} {yes} {if_} {clause}, {else_} {no}.",
    "{Say} {yes} {if_} {clause}; {else_} {say} {no}.",
    "{Say} {yes} {if_} {clause}. {Else_}, {say} {no}.",
    "{If_} {clause}, {say} {yes}, {else_} {no}.",
    "{If_} {clause}, {say} {yes}; {else_} {say} {no}.",
    "{If_} {clause}, it is {yes}. {Else_}, it is {no}.",
    "{If_} {clause} the answer is {yes}, {else_} {no}.",
    "The answer is {yes} {if_} {clause} and {else_} {no}.",
    "{yes} {if_} {clause}, {else_} {no}.",
    "{yes} is for {text} {if_} {clause}, {no} for anything else.",
    "{no} is what to {say}, and {yes} {if_} {clause}.",
    "You {say} {no}, but {if_} {clause}, {yes}.",
    "Put {text} under {yes} {if_} {clause}; {else_} put it under {no}.",
    "There are two groups, {yes} and {no}: {clause} in the first, not so in the second.",
    "There are two groups, {no} and {yes}: {clause} in the second, not so in the first.",
    "{yes}: {clause}. {no}: it is not so.",
    "{no}: it is not so that {clause}. {yes}: it is.",
    "{yes} ({clause}) or {no} (not so)?",
    "{Say} {yes} if {clause}, and {no} if not.",
    "{Say} {yes} if {clause}, otherwise {no}.",
    "If {clause}, {say} {yes}. If not, {say} {no}.",
    "If {clause} {say} {yes}, else {no}.",
    "{Say} {no} unless {clause}, in which case {say} {yes}.",
    "Unless {clause}, {say} {no}; otherwise {say} {yes}.",
    "When {clause} the answer is {yes}, and when this is not so it is {no}.",
    "The answer is {yes} if {clause} and {no} otherwise.",
    "The label is {yes} where {clause}, else {no}.",
    "Read {text} and {say} {yes} if {clause}, {no} if it is otherwise.",
    "Look at {text}. {Say} {yes} when {clause}, {no} when that is wrong.",
    "Your task: {say} {yes} for {text} if {clause}, and {no} in all other cases.",
    "Label {text} {yes} if {clause} and {no} if it is not so.",
    "Mark it as {yes} when {clause}, as {no} when not.",
    "Decide whether {clause}: {yes} if it is so, {no} if it is not.",
    "Find out if {clause}. If so, {say} {yes}; if not, {no}.",
    "Is it so that {clause}? {Say} {yes} or, if it is not, {no}.",
    "Check that {clause}: {yes} for a text that passes, {no} for one that fails.",
    "{yes} means that {clause}, {no} means that it is not so.",
    "{yes} if {clause}, {no} if not.",
    "{no} is the answer unless {clause}, then it is {yes}.",
    "In one word: {yes} if {clause}, {no} otherwise.",
    "{Say} {no}, except where {clause}: {say} {yes} there.",
    "Assume {no}; {say} {yes} once you see that {clause}.",
    "{no} for most texts, {yes} for those of which it is true that {clause}.",
    "If it is false that {clause}, {say} {no}, and {yes} if it is true.",
    "Texts get {yes} where {clause}, all others {no}.",
    "Start from {no}, and change it to {yes} if {clause}.",
)
LABELLED_HELD_OUT = (
    "Whenever {clause}, respond {yes}; in every other case respond {no}.",
    "Sort what you are given into {yes} ({clause}) and {no} (the rest).",
    "Tell me {yes} provided that {clause}, or else {no}.",
    "I want to hear {yes} in case {clause}, and {no} in case it is otherwise.",
    "Classify: {yes} = {clause}; {no} = the opposite.",
    "Use {no} as the default, but {yes} as soon as {clause}.",
)
NUMERIC = (
    "{Say} {result}.",
    "{Say} {result} of the two in {text}.",
    "Read {text} and {say} {result}.",
    "Look at the numbers and {say} {result}.",
    "The answer is {result}.",
    "Your task is to {say} {result}.",
    "Find {result}.",
    "Work out {result}.",
    "Calculate {result}.",
    "Determine {result}.",
    "What is {result}?",
    "For {text}, {say} {result}.",
    "{Say} only {result}.",
    "{Say} {result} and nothing else.",
    "Given two numbers, {say} {result}.",
    "Of two numbers, {say} {result}.",
    "You get two numbers: {say} {result}.",
    "There are two numbers. {Say} {result}.",
    "I need {result}.",
    "The result is {result}.",
    "In digits: {result}.",
)
NUMERIC_HELD_OUT = (
    "Tell me {result}, please.",
    "I would like to know {result}.",
    "Compute {result} for the pair.",
    "All that matters is {result}.",
)
_IF = (
    "if",
    "when",
    "where",
    "so long as",
    "given that",
    "every time",
    "on condition that",
    "only if",
    "assuming",
)
_ELSE = (
    "otherwise",
    "else",
    "if not",
    "failing that",
    "in all other cases",
    "for all others",
    "for everything else",
)
_SAY = ("say", "answer", "reply", "write", "output", "print", "give", "return", "choose")
_TEXT = ("the text", "this text", "the passage", "the input", "the message")


def labelled(clauses: Sequence[str], yes: str, no: str, rng: random.Random, held_out: bool = False) -> str:
    """A description of a task with two labels.

    clauses: of the attribute, the last one for held-out descriptions alone.
    """
    template = rng.choice(LABELLED_HELD_OUT if held_out else LABELLED)
    clause = clauses[-1] if held_out else rng.choice(clauses[:-1])
    slots = _slots(rng)
    quote = rng.choice(("", '"'))
    words = {"yes": f"{quote}{yes}{quote}", "no": f"{quote}{no}{quote}"}
    return template.format(clause=clause.format(text=slots["text"]), **words, **slots)


def numeric(phrases: Sequence[str], rng: random.Random, held_out: bool = False) -> str:
    """A description of a task that is answered by a number.

    phrases: that name it, the last one for held-out descriptions alone.
    """
    template = rng.choice(NUMERIC_HELD_OUT if held_out else NUMERIC)
    result = phrases[-1] if held_out else rng.choice(phrases[:-1])
    return template.format(result=result, **_slots(rng))


def _slots(rng: random.Random) -> dict[str, str]:
    words = {"say": rng.choice(_SAY), "if_": rng.choice(_IF), "else_": rng.choice(_ELSE)}
    return (
        words
        | {name.capitalize(): word.capitalize() for name, word in words.items()}
        | {"text": rng.choice(_TEXT)}
    )
