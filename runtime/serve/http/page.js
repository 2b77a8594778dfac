"use strict";
// The page of fb-serve. Everything that a user or the service wrote becomes text, never markup.

const USUAL = ["model", "size", "frames", "schedule", "steps", "guidance", "seed", "cache", "solver", "negative_prompt"];
// Fields of files: what a model has to take for them, their label, and what may be chosen.
const FILES = {
  input_reference: ["image", "begin with an image", "image/*"],
  video: ["video", "a video, or a ZIP file of its frames", "video/*,image/*,.zip"],
  mask: ["mask", "its mask, white where it is made anew", "video/*,image/*,.zip"],
};
const byId = (id) => document.getElementById(id);
const cards = new Map();
let models = [];
let schema = {};
let oldest = null;
let chosen = [];

function element(tag, text, kind) {
  const found = document.createElement(tag);
  if (text !== undefined) found.textContent = text;
  if (kind) found.className = kind;
  return found;
}

async function ask(path, options = {}) {
  const key = byId("key").value.trim();
  const headers = { ...(options.headers || {}), ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Error(body && body.error ? body.error.message : `The service answered ${response.status}.`);
  }
  return response;
}

const json = async (path, options) => (await ask(path, options)).json();

function say(error) { byId("error").textContent = error ? error.message || String(error) : ""; }

function kindOf(about) { return [].concat(about.type).find((each) => each !== "null"); }

function inputOf(name, about) {
  const kind = kindOf(about);
  const choices = name === "model" ? models.map((each) => each.id) : kind === "boolean" ? ["", "true", "false"] : about.enum;
  if (choices) {
    const select = element("select");
    for (const each of choices) {
      const option = element("option", each === "" ? "default" : each);
      option.value = each;
      select.append(option);
    }
    return select;
  }
  const input = element("input");
  if (kind === "integer" || kind === "number") {
    input.type = "number";
    input.step = kind === "integer" ? "1" : "any";
    if (about.minimum !== undefined) input.min = about.minimum;
    // JavaScript's numbers hold no seed of 64 bits.
    if (about.maximum !== undefined) input.max = Math.min(about.maximum, Number.MAX_SAFE_INTEGER);
  }
  return input;
}

function drawFields() {
  byId("usual").replaceChildren();
  byId("more").replaceChildren();
  const names = Object.keys(schema.properties).filter((name) => name !== "prompt" && name !== "seconds");
  for (const name of [...USUAL, ...names.filter((each) => !USUAL.includes(each))]) {
    const about = schema.properties[name];
    const label = element("label", name.replaceAll("_", " "));
    label.title = about.description;
    const input = inputOf(name, about);
    input.name = name;
    label.append(input);
    byId(USUAL.includes(name) ? "usual" : "more").append(label);
  }
  for (const [name, [, text, accept]] of Object.entries(FILES)) {
    const label = element("label", text);
    const file = element("input");
    file.type = "file";
    file.accept = accept;
    file.name = name;
    label.append(file);
    byId("usual").append(label);
  }
  byId("form").elements.model.addEventListener("change", bounds);
  bounds();
}

// The placeholders are the chosen model's defaults; sizes and frames are those that it makes.
function bounds() {
  const elements = byId("form").elements;
  const model = models.find((each) => each.id === elements.model.value);
  for (const [name, [kind]] of Object.entries(FILES)) elements[name].parentElement.hidden = !model.takes.includes(kind);
  for (const [name, value] of Object.entries(model.defaults)) {
    if (elements[name]) elements[name].placeholder = value;
  }
  for (const name of ["size", "frames"]) {
    const list = byId(`${name}-list`) || element("datalist");
    list.id = `${name}-list`;
    list.replaceChildren(...[...new Set(model.videos.map((each) => each[name]))].map((each) => {
      const option = element("option");
      option.value = each;
      return option;
    }));
    elements[name].after(list);
    elements[name].setAttribute("list", list.id);
    elements[name].title = model.videos.map((each) => `${each.size}, ${each.frames} frames`).join("; ");
  }
}

function request() {
  const fields = {};
  for (const input of byId("form").elements) {
    if (!input.name || input.name in FILES || input.value === "") continue;
    const about = schema.properties[input.name];
    const kind = kindOf(about);
    fields[input.name] = kind === "boolean" ? input.value === "true" : kind === "string" ? input.value : Number(input.value);
  }
  return fields;
}

// JSON, or a form where files go with it.
function body() {
  const elements = byId("form").elements;
  const inputs = Object.keys(FILES).map((name) => elements[name]);
  const given = inputs.filter((input) => !input.parentElement.hidden && input.files.length);
  if (!given.length) {
    return { headers: { "content-type": "application/json" }, body: JSON.stringify(request()) };
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(request())) form.append(name, String(value));
  for (const input of given) form.append(input.name, input.files[0]);
  return { body: form };
}

// Runs of steps of one transformer, each as wide as it has steps and filled as far as it is.
function drawBar(bar, video) {
  const runs = [];
  for (const model of video.plan || []) {
    if (runs.length && runs[runs.length - 1].model === model) runs[runs.length - 1].steps += 1;
    else runs.push({ model, steps: 1 });
  }
  let done = video.step || 0;
  bar.replaceChildren(...runs.map((run) => {
    const stage = element("div", undefined, run.model === runs[0].model ? "stage" : "stage other");
    stage.style.flex = String(run.steps);
    stage.title = `${run.model}: ${run.steps} steps`;
    const fill = element("div", undefined, "fill");
    fill.style.width = `${100 * Math.min(1, Math.max(0, done / run.steps))}%`;
    done -= run.steps;
    stage.append(fill);
    return stage;
  }));
  bar.setAttribute("aria-valuenow", String(video.progress));
}

function cardOf(video, first) {
  let card = cards.get(video.id);
  if (card) return card;
  const root = element("article");
  root.id = video.id;
  const bar = element("div", undefined, "bar");
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-label", "Sampling");
  const state = element("p", undefined, "state");
  const media = element("div");
  const compare = element("button", "Compare");
  compare.type = "button";
  compare.hidden = true;
  compare.addEventListener("click", () => choose(video.id));
  const remove = element("button", "Delete");
  remove.type = "button";
  remove.addEventListener("click", () => ask(`v1/videos/${video.id}`, { method: "DELETE" }).then(() => forget(video.id)).catch(say));
  const buttons = element("div", undefined, "row");
  buttons.append(compare, remove);
  const options = [...Object.entries(video.options), ...Object.entries(video.files)].map(([name, value]) => `${name} ${value}`).join(", ");
  root.append(media, element("p", video.prompt), element("p", [video.model, options].filter(Boolean).join(": "), "quiet"), bar, state, buttons);
  card = { root, bar, state, media, compare, url: null, loading: false };
  cards.set(video.id, card);
  byId("results")[first ? "prepend" : "append"](root);
  return card;
}

function forget(id) {
  const card = cards.get(id);
  if (!card) return;
  card.root.remove();
  if (card.url) URL.revokeObjectURL(card.url);
  cards.delete(id);
  chosen = chosen.filter((each) => each !== id);
  drawBeside();
}

function player(card) {
  const video = element("video");
  video.src = card.url;
  video.controls = video.loop = video.muted = video.playsInline = true;
  return video;
}

// What is being made, until it is made.
function preview(card, video) {
  let picture = card.media.querySelector("img");
  if (!picture) {
    picture = element("img");
    card.media.replaceChildren(picture);
  }
  picture.src = video.preview;
  picture.alt = `What it looks like after step ${video.preview_step}`;
}

async function show(video, first) {
  const card = cardOf(video, first);
  card.bar.hidden = video.status !== "in_progress" || !video.plan;
  if (!card.bar.hidden) drawBar(card.bar, video);
  const left = video.seconds_left === null ? "" : `, ${Math.ceil(video.seconds_left)} s of sampling left`;
  const states = {
    queued: `waits, ${video.queue_position} before it`,
    in_progress: `${video.stage || "starting"} ${video.progress} %${left}`,
    completed: `${video.size}, ${video.frames} frames, made in ${(video.timings.total || 0).toFixed(1)} s`,
    failed: video.error ? video.error.message : "failed",
  };
  if (video.preview && video.status === "in_progress") preview(card, video);
  card.state.textContent = [states[video.status], ...video.warnings].join(" · ");
  card.state.classList.toggle("failed", video.status === "failed");
  if (video.status === "completed" && !card.url && !card.loading) {
    card.loading = true;
    card.url = URL.createObjectURL(await (await ask(`v1/videos/${video.id}/content`)).blob());
    card.media.replaceChildren(player(card));
    card.compare.hidden = false;
  }
}

function choose(id) {
  chosen = chosen.includes(id) ? chosen.filter((each) => each !== id) : [...chosen.slice(-1), id];
  drawBeside();
}

function drawBeside() {
  for (const [id, card] of cards) card.compare.setAttribute("aria-pressed", String(chosen.includes(id)));
  const players = chosen.map((id) => player(cards.get(id)));
  byId("beside").replaceChildren(...players);
  byId("beside").hidden = players.length < 2;
  if (players.length === 2) {
    const [one, other] = players;
    for (const event of ["play", "pause", "seeked"]) {
      one.addEventListener(event, () => {
        if (event === "seeked") other.currentTime = one.currentTime;
        else other[event]().catch?.(() => {});
      });
    }
    byId("beside").scrollIntoView({ block: "nearest" });
  }
}

// EventSource sends no key: the stream is read by hand.
async function follow(id) {
  const reader = (await ask(`v1/videos/${id}/events?preview=true`)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block);
      const data = /^data: (.*)$/m.exec(block);
      if (!name || !data) continue;
      if (name[1] === "deleted") forget(id);
      else await show(JSON.parse(data[1]), true);
    }
  }
}

async function history() {
  const page = await json(`v1/videos?limit=12${oldest ? `&after=${oldest}` : ""}`);
  oldest = page.last_id || oldest;
  byId("older").hidden = !page.has_more;
  for (const video of page.data) {
    await show(video, false);
    if (video.status === "queued" || video.status === "in_progress") follow(video.id).catch(say);
  }
}

async function begin() {
  say();
  oldest = null;
  const [api, list] = await Promise.all([json("openapi.json"), json("v1/models")]);
  schema = api.paths["/v1/videos"].post.requestBody.content["application/json"].schema;
  models = list.data;
  drawFields();
  await history();
}

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  say();
  byId("make").disabled = true;
  try {
    const video = await json("v1/videos", { method: "POST", ...body() });
    await show(video, true);
    follow(video.id).catch(say);
  } catch (error) {
    say(error);
  } finally {
    byId("make").disabled = false;
  }
});
byId("older").addEventListener("click", () => history().catch(say));
byId("key").addEventListener("change", () => begin().catch(say));
begin().catch(say);
