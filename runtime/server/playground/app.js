// Puts the page together.

import * as api from "./api.js";
import { Conversation } from "./conversation.js";
import { heatmap } from "./heatmap.js";
import { Mixture } from "./mixture.js";
import { Timeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const base = new Conversation($("base"), $("base-facts"), $("base-error"));
const adapted = new Conversation($("adapted"), $("adapted-facts"), $("adapted-error"));
const timeline = new Timeline($("timeline"));
// Milliseconds that a slider rests before its weight is sent.
const REST = 100;
let running = null;
let rescaling = null;

const mixture = new Mixture(
  {
    expert: $("expert"), description: $("description"), taskBox: $("task-box"), task: $("task"),
    mixture: $("mixture"), sliders: $("sliders"), add: $("add"),
  },
  () => {
    $("adapted-title").textContent = mixture.title;
    $("z-box").hidden = mixture.single === null;
    if ($("z-box").open) showZ();
  },
  () => {
    clearTimeout(rescaling);
    rescaling = setTimeout(rescale, REST);
  },
);

// Has the answer that is on its way go on under the weights that the sliders show.
async function rescale() {
  if (adapted.running === null) return;
  try {
    await api.rescale(adapted.running, mixture.fields);
  } catch (error) {
    adapted.error.textContent = error.message;
  }
}

function askForKey() {
  $("options").open = true;
  $("key").focus();
}

async function load() {
  try {
    const models = await api.models();
    mixture.offer(models);
    $("served").textContent = `${models[0].id}: one model, many experts. Ask once, and see it with and without an expert.`;
    $("error").textContent = "";
  } catch (error) {
    $("error").textContent = error.message;
    if (error.status === 401) askForKey();
  }
}

async function showZ() {
  const name = mixture.single;
  try {
    if (name !== null) heatmap($("heatmap"), await api.z(name));
  } catch (error) {
    $("heatmap").textContent = error.message;
  }
}

function showProbabilities(dispatch) {
  const rows = Object.entries(dispatch?.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
  $("probabilities").replaceChildren(
    ...rows.map(([label, value]) => {
      const row = document.createElement("label");
      const meter = document.createElement("meter");
      meter.value = value;
      row.append(`${label} ${(100 * value).toFixed(1)}%`, meter);
      return row;
    }),
  );
}

async function send(prompt) {
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  $("error").textContent = "";
  const common = { temperature: Number($("temperature").value), max_tokens: Number($("max-tokens").value) };
  const chunks = (fields, alone) => (messages) =>
    api.chat({ ...fields, ...common, messages: alone ? messages.slice(-1) : messages }, running.signal);
  const title = mixture.title;
  const outcomes = await Promise.allSettled([
    base.answer(prompt, chunks({ model: "base" }, false)),
    adapted.answer(prompt, chunks(mixture.fields, mixture.asksAlone)),
  ]);
  outcomes.forEach((outcome, index) => {
    if (outcome.status === "fulfilled") timeline.add(index ? title : "base", outcome.value);
  });
  if (outcomes.some(({ reason }) => reason?.status === 401)) askForKey();
  showProbabilities(outcomes[1].value?.zweave?.dispatch);
  $("send").disabled = false;
  $("stop").disabled = true;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value.trim();
  if (!prompt || $("send").disabled) return;
  $("prompt").value = "";
  send(prompt);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => [base, adapted].forEach((one) => one.clear()));
$("temperature").addEventListener("input", () => ($("temperature-shown").textContent = $("temperature").value));
$("z-box").addEventListener("toggle", () => $("z-box").open && showZ());
$("key").value = api.key();
$("key").addEventListener("change", () => {
  api.setKey($("key").value);
  load();
});
load();
