// The page of `lamina play`. All addresses are relative: the page lies below the server's token.
// A session is its start and its moves, words that the server understands (lamina/play/session.py); the address bar holds them.

const $ = (id) => document.getElementById(id);
const TABS = ["drive", "transfer", "add", "map", "health"];
const FASTEST = 1000 / 30; // milliseconds between two steps of a key that is held
const HOLD = 280; // milliseconds until a key that is held repeats
const REAL_SPEED_DIGITS = 1;

let about = null; // what the server told about the run
const state = { start: "d0", moves: [], k: 0, tab: "drive" };
let steps = []; // of the session: {frame, reading}; the first is the start
const chosen = { source: 0, target: 0, other: 0, first: 0, second: 0, following: false, point: null };
const drawn = {}; // tabs that have been built

// ------------------------------------------------------------------------------------------------------------- helpers

/** An element with properties and children; text is always text, never markup. */
function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key === "role" || key === "for") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

let toastTimer = 0;
function toast(text, good = false) {
  $("toast").textContent = text;
  $("toast").className = good ? "good" : "";
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, good ? 2500 : 8000);
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer; is lamina play still running?");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Error(said.error || `The server answered with status ${response.status}.`);
  }
  return response;
}

const json = async (path, options) => (await ask(path, options)).json();
const post = (path, content) => json(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(content) });
const guarded = (work) => async (...given) => { try { return await work(...given); } catch (error) { toast(error.message); return undefined; } };

let changes = Promise.resolve(); // of the session, so far
/** A change of the session, made when those before it are done: it begins with the session that they leave. */
const inTurn = (work) => (...given) => {
  const made = changes.then(() => work(...given));
  changes = made.catch(() => {});
  return made;
};

/** The last step of each session. */
async function roll(...sessions) {
  return (await post("roll", { sessions })).steps.map((found) => found[0]);
}

const frameOf = (n, t) => `frame/${n}/${t}.png`;
const following = (n) => n + about.transitions.length; // the transition after transition n
const pick = (count) => Math.floor(Math.random() * count);
const sign = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

/** A transition as a picture that flips between its two frames. */
function flip(n, name = "") {
  return h("span", { className: "flip", title: name },
    h("img", { src: frameOf(n, 0), alt: name, loading: "lazy" }), h("img", { src: frameOf(n, 1), alt: "", loading: "lazy" }));
}

function describe(n) {
  const { episode, row, action, task } = about.transitions[n];
  return [`episode ${episode}, row ${row}`, action && `action ${action}`, task].filter(Boolean).join(", ");
}

function figure(src, title, note = "", lead = false) {
  const picture = src instanceof Node ? src : h("img", { src, alt: title });
  return h("figure", { className: lead ? "lead" : "" }, picture, h("figcaption", {}, title, note ? h("small", {}, note) : ""));
}

async function pixels(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  const canvas = h("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** Peak signal-to-noise ratio of two pictures, dB. */
async function psnr(a, b) {
  const [x, y] = await Promise.all([pixels(a), pixels(b)]);
  let sum = 0;
  for (let i = 0; i < x.data.length; i += 4) for (let c = 0; c < 3; c++) sum += (x.data[i + c] - y.data[i + c]) ** 2;
  const mean = sum / (0.75 * x.data.length);
  return mean ? 10 * Math.log10(255 ** 2 / mean) : Infinity;
}

const decibels = (value) => (value === Infinity ? "the same picture" : `${value.toFixed(1)} dB`);

/** What changed from picture a to picture b, doubled; grey: nothing. */
async function change(a, b) {
  const [x, y] = await Promise.all([pixels(a), pixels(b)]);
  const canvas = h("canvas", { width: x.width, height: x.height });
  for (let i = 0; i < x.data.length; i++) if (i % 4 < 3) x.data[i] = 128 + (y.data[i] - x.data[i]);
  canvas.getContext("2d").putImageData(x, 0, 0);
  return canvas;
}

// --------------------------------------------------------------------------------------------------- the address of a session

let linkTimer = 0;
function words() {
  const values = new URLSearchParams({ run: about.fingerprint, seed: about.seed, tab: state.tab, k: state.k, start: state.start, moves: state.moves.join(",") });
  return values.toString().replaceAll("%2C", ",").replaceAll("%40", "@").replaceAll("%7E", "~");
}
function remember() { // later, since browsers limit how often an address may change
  clearTimeout(linkTimer);
  linkTimer = setTimeout(() => history.replaceState(null, "", `#${words()}`), 250);
}

/** Take over the session in a link; true where there was one. Throws for that of another run. */
async function repeat(link) {
  const values = new URLSearchParams(link.slice(link.indexOf("#") + 1));
  if (!link.includes("#") || !values.get("start")) return false;
  if (values.get("run") !== about.fingerprint) throw new Error("This link is of another run, data or seed; start lamina play with those.");
  const moves = (values.get("moves") || "").split(",").filter(Boolean);
  await become(values.get("start"), moves);
  const k = Number(values.get("k"));
  if (about.prefixes.includes(k)) setK(k);
  if (TABS.includes(values.get("tab"))) show(values.get("tab"));
  return true;
}

/** Show a session from its words. */
const become = inTurn(async (start, moves) => {
  const found = await post("roll", { sessions: [{ start, moves }], every: true });
  Object.assign(state, { start, moves });
  [steps] = found.steps;
  paint(true);
});

// --------------------------------------------------------------------------------------------------------------- Drive

const session = () => ({ start: state.start, moves: state.moves });
const keyOf = (move) => about.keys.findIndex((key) => String(key.medoid) === move.split("@")[0]);
const nameOf = (move) => (keyOf(move) >= 0 ? `key ${keyOf(move) + 1}` : move.split("@")[0].replaceAll("x", " × ").replaceAll("~", " + "));

function paint(everything = false) {
  const last = steps[steps.length - 1];
  $("screen").src = last.frame;
  $("count").textContent = steps.length === 1 ? "the start frame" : `step ${steps.length - 1} (${((steps.length - 1) * about.gap).toFixed(REAL_SPEED_DIGITS)} s)`;
  $("undo").disabled = $("reset").disabled = steps.length === 1;
  paintReading(last.reading);
  if (everything) $("strip").replaceChildren(...steps.map(stripFigure));
  else $("strip").append(stripFigure(last, steps.length - 1));
  $("strip").scrollLeft = $("strip").scrollWidth;
  remember();
  prefixesLater();
}

function stripFigure(step, n) {
  const title = n ? nameOf(state.moves[n - 1]) : "start";
  const said = best(step.reading);
  const item = h("figure", { title: n ? `Back to step ${n}` : "Back to the start" },
    h("img", { className: "thumb", src: step.frame, alt: title }), h("figcaption", {}, h("b", {}, title), said ? h("br") : "", said));
  item.addEventListener("click", () => back(n));
  return item;
}

const best = (reading) => (reading && reading.length && "probability" in reading[0] ? reading[0].name : "");

function paintReading(reading) {
  if (about.unread) {
    $("reading").replaceChildren(h("p", { className: "soft" }, about.unread));
    return;
  }
  if (!reading) {
    $("reading").replaceChildren(h("p", { className: "soft" }, "Take a step: what the latent would be as a real action is shown here."));
    return;
  }
  const numbers = reading.filter((one) => "value" in one);
  const largest = Math.max(1e-6, ...numbers.map((one) => Math.abs(one.value)));
  const rows = reading.flatMap((one) => {
    const share = "probability" in one ? one.probability : Math.abs(one.value) / largest;
    const bar = h("i");
    bar.style.width = `${100 * share}%`;
    return [h("span", {}, one.name), h("span", { className: "track" }, bar), h("span", {}, "probability" in one ? `${(100 * one.probability).toFixed(0)}%` : sign(one.value))];
  });
  $("reading").replaceChildren(h("div", { className: "bars" }, ...rows));
}

let prefixTimer = 0;
let prefixTurn = 0;
function prefixesLater() {
  clearTimeout(prefixTimer);
  prefixTimer = setTimeout(guarded(paintPrefixes), 150);
}

async function paintPrefixes() {
  const turn = ++prefixTurn;
  const { start, moves } = session();
  if (about.prefixes.length < 2) {
    $("prefixes").replaceChildren(h("p", { className: "soft" }, `This model was trained with all of its ${about.slots} slots: no shorter prefix means anything.`));
    return;
  }
  if (!moves.length) {
    $("prefixes").replaceChildren(h("p", { className: "soft" }, "Take a step: it is then shown from the first 1, 2, 4, ... slots of its latent."));
    return;
  }
  const [terms] = moves[moves.length - 1].split("@");
  const found = await roll(...about.prefixes.map((k) => ({ start, moves: [...moves.slice(0, -1), `${terms}@${k}`] })));
  if (turn !== prefixTurn) return;
  $("prefixes").replaceChildren(...found.map((step, n) => {
    const k = about.prefixes[n];
    const item = h("figure", { className: k === state.k ? "on" : "", title: `Take this step, and the next ones, with k = ${k}` },
      h("img", { className: "thumb", src: step.frame, alt: `k = ${k}` }), h("figcaption", {}, `k = ${k}`, best(step.reading) ? h("br") : "", best(step.reading)));
    item.addEventListener("click", guarded(async () => { setK(k); await redo(); }));
    return item;
  }));
}

/** The last step again, with the k that is set now. */
const redo = inTurn(async () => {
  if (!state.moves.length) return;
  const moves = [...state.moves];
  moves.push(`${moves.pop().split("@")[0]}@${state.k}`);
  const [last] = await roll({ start: state.start, moves });
  state.moves = moves;
  steps.pop();
  steps.push(last);
  $("strip").lastChild?.remove();
  paint();
});

function setK(k) {
  state.k = k;
  for (const input of document.querySelectorAll("input.k")) input.value = about.prefixes.indexOf(k);
  for (const output of document.querySelectorAll("output.k-value")) output.textContent = `${k} of ${about.slots}`;
  remember();
}

const waiting = []; // keys that were pressed and not yet applied
let held = null; // key that is down: {key, since}
let running = false;
let last = 0; // when the last step was shown
let rate = 0; // frames a second, averaged

async function run() {
  if (running) return;
  running = true;
  try {
    for (;;) {
      if (!waiting.length) {
        if (!held) break;
        const left = Math.max(HOLD - (performance.now() - held.since), FASTEST - (performance.now() - last));
        if (left > 0) { await new Promise((done) => setTimeout(done, left)); continue; }
        waiting.push(held.key);
      }
      await step(`${about.keys[waiting.shift()].medoid}@${state.k}`);
    }
  } catch (error) {
    waiting.length = 0;
    held = null;
    toast(error.message);
  } finally {
    running = false;
  }
}

const step = inTurn(async (move) => {
  const moves = [...state.moves, move];
  const answer = await post("roll", { sessions: [{ start: state.start, moves }] });
  state.moves = moves;
  steps.push(answer.steps[0][0]);
  const now = performance.now();
  const gap = now - last;
  last = now;
  rate = gap < 400 ? (rate ? 0.85 * rate + 0.15 * (1000 / gap) : 1000 / gap) : 0;
  $("speed").textContent = (rate ? `${rate.toFixed(0)} frames/s, ${(rate * about.gap).toFixed(REAL_SPEED_DIGITS)} × real time, ` : "") + `decoder ${answer.milliseconds.toFixed(0)} ms`;
  paint();
});

function press(key) {
  if (key >= about.keys.length || waiting.length > 8) return;
  waiting.push(key);
  held = { key, since: performance.now() };
  $("keys").children[key].classList.add("down");
  showExamples(key);
  run();
}

function release() {
  held = null;
  for (const button of $("keys").children) button.classList.remove("down");
}

const cut = inTurn(async (n) => {
  const kept = n < 0 ? steps.length + n : n;
  if (kept < 0) return;
  state.moves = state.moves.slice(0, kept);
  steps = steps.slice(0, kept + 1);
  paint(true);
});

/** Back to step n; below 0: counted from the end, -1 is the last step. */
function back(n) {
  if (!running) cut(n);
}

const begin = guarded(async (start) => { await become(start, []); });
const anotherStart = () => begin(`d${about.moving[pick(about.moving.length)]}`);

function showExamples(key) {
  const { examples, share, label } = about.keys[key];
  $("examples-title").textContent = `Key ${key + 1}: ${(100 * share).toFixed(0)}% of the transitions${label ? `, ${label}` : ""}`;
  $("examples").replaceChildren(...examples.map((n) => h("figure", {}, flip(n, describe(n)), h("figcaption", {}, about.transitions[n].action))));
}

function buildDrive() {
  $("keys").replaceChildren(...about.keys.map(({ medoid, share, label }, n) => {
    const button = h("button", { className: "key", "aria-label": `Key ${n + 1}${label ? `: ${label}` : ""}` },
      flip(medoid), h("b", {}, String(n + 1)), h("span", {}, label || `${(100 * share).toFixed(0)}%`));
    button.addEventListener("pointerdown", (event) => { if (event.button === 0) press(n); });
    for (const end of ["pointerup", "pointerleave", "pointercancel"]) button.addEventListener(end, release);
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    button.addEventListener("click", (event) => { if (event.detail === 0) { press(n); release(); } }); // by Enter, or a screen reader
    for (const near of ["pointerenter", "focus"]) button.addEventListener(near, () => showExamples(n));
    return button;
  }));
  showExamples(0);
  $("undo").addEventListener("click", () => back(-2));
  $("reset").addEventListener("click", () => back(0));
  $("another").addEventListener("click", anotherStart);
  $("upload").addEventListener("change", guarded(async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    if (file.size > about.upload.bytes) throw new Error(`the upload has more than ${about.upload.bytes / 2 ** 20} MB; choose a smaller picture`);
    const { start } = await json("upload", { method: "POST", headers: { "content-type": file.type || "application/octet-stream" }, body: file });
    await become(start, []);
  }));
  for (const input of document.querySelectorAll("input.k")) {
    input.max = about.prefixes.length - 1;
    input.parentElement.hidden = about.prefixes.length < 2;
  }
  drawn.drive = guarded(async (changed) => { if (changed) await redo(); });
  for (const kind of ["mp4", "json", "rrd"]) {
    $(`save-${kind}`).addEventListener("click", guarded(async () => {
      const button = $(`save-${kind}`);
      button.disabled = true;
      try {
        const response = await ask(`save/${kind}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(session()) });
        const address = URL.createObjectURL(await response.blob());
        h("a", { href: address, download: `session.${kind}` }).click();
        setTimeout(() => URL.revokeObjectURL(address), 10000);
      } finally {
        button.disabled = false;
      }
    }));
  }
  $("save-rrd").disabled = !about.rerun;
  if (!about.rerun) $("save-rrd").title = "Needs the rerun library: pip install 'lamina[rerun]'";
  $("copy").addEventListener("click", guarded(async () => {
    history.replaceState(null, "", `#${words()}`);
    await navigator.clipboard.writeText(location.href).catch(() => { throw new Error("The browser does not allow it; copy the address of this page."); });
    toast("The link is in the clipboard.", true);
  }));
  $("repeat").addEventListener("submit", guarded(async (event) => {
    event.preventDefault();
    if (!(await repeat($("link").value.trim()))) throw new Error("This is no link of a session; it holds #run=...&start=...");
    $("link").value = "";
  }));
  $("open").addEventListener("change", guarded(async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    const { start, moves } = await json("open", { method: "POST", body: file });
    await become(start, moves);
  }));
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input[type=text], select");
  if (!about || state.tab !== "drive" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^[1-9]$/.test(event.key)) {
    if (!event.repeat) press(Number(event.key) - 1);
  } else if (event.repeat) {
    return;
  } else if (event.key === "Backspace" && steps.length > 1) back(-2);
  else if (event.key === "r" && steps.length > 1) back(0);
  else if (event.key === "n") anotherStart();
  else return;
  event.preventDefault();
});
document.addEventListener("keyup", (event) => { if (/^[1-9]$/.test(event.key)) release(); });
addEventListener("blur", release);

// ------------------------------------------------------------------------------------------------------ Transfer and Add

/** A gallery of transitions, or of their first frames, and a way to others. */
function gallery(box, onPick, { moving = true, first = 0 } = {}) {
  const total = about.moving.length;
  const count = Math.min(16, total);
  let offset = 0;
  const grid = h("div", { className: "gallery" });
  const text = h("p", { className: "picked" });
  let current = first;
  function mark(n) {
    current = n;
    for (const button of grid.children) button.setAttribute("aria-pressed", String(button.number === n));
    text.textContent = describe(n);
  }
  function fill() {
    const stride = Math.max(1, Math.floor(total / count));
    const shown = [...new Set([current, ...Array.from({ length: count }, (_, i) => about.moving[(i * stride + offset) % total])])].slice(0, count);
    grid.replaceChildren(...shown.map((n) => {
      const button = h("button", { "aria-pressed": "false", "aria-label": describe(n), title: describe(n) },
        moving ? flip(n) : h("img", { className: "thumb", src: frameOf(n, 0), alt: "", loading: "lazy" }));
      button.number = n;
      button.addEventListener("click", () => { mark(n); onPick(n); });
      return button;
    }));
    mark(current);
  }
  const more = h("button", {}, "Others");
  more.addEventListener("click", () => { offset += 1; fill(); });
  $(box).replaceChildren(grid, text, h("div", { className: "buttons" }, more));
  fill();
  return (n) => { current = n; fill(); };
}

function buildTransfer() {
  const total = about.transitions.length;
  const episode = (n) => about.transitions[n].episode;
  const apart = (n) => (m) => episode(m) !== episode(n);
  // Of another episode; where there is only one, half of the transitions away, since neighbours move alike.
  const elsewhere = (n) => {
    const there = about.moving.filter(apart(n));
    const others = there.length ? there : about.transitions.map((_, m) => m).filter(apart(n));
    return others.length ? others[pick(others.length)] : (n + Math.floor(total / 2)) % total;
  };
  chosen.target = elsewhere(chosen.source);
  const paintAll = guarded(paintTransfer);
  const setSource = gallery("transfer-source", (n) => { chosen.source = n; chosen.other = elsewhere(n); paintAll(); }, { first: chosen.source });
  gallery("transfer-target", (n) => { chosen.target = n; paintAll(); }, { moving: false, first: chosen.target });
  chosen.other = elsewhere(chosen.source);
  drawn.transfer = (_, n) => { if (n !== undefined) { chosen.source = n; chosen.other = elsewhere(n); setSource(n); } paintAll(); };
  paintAll();
}

let transferTurn = 0;
async function paintTransfer() {
  const turn = ++transferTurn;
  const { source, target, other } = chosen;
  const start = `d${target}`;
  const [own, foreign] = await roll({ start, moves: [`${source}@${state.k}`] }, { start, moves: [`${other}@${state.k}`] });
  const frame = frameOf(target, 0);
  const changes = [await change(frame, own.frame), await change(frame, foreign.frame)];
  const means = async (step) => { const value = await psnr(frame, step.frame); return `${decibels(value)} from copy-frame`; };
  const notes = await Promise.all([own, foreign].map(means));
  if (turn !== transferTurn) return;
  const says = (step) => (best(step.reading) ? `, read as ${best(step.reading)}` : "");
  $("transfer-result").replaceChildren(
    figure(frameOf(source, 0), "The transition: before"),
    figure(frameOf(source, 1), "after", about.transitions[source].action),
    figure(frame, "Copy-frame: nothing happens"),
    figure(own.frame, "The same latent here", notes[0] + says(own), true),
    figure(changes[0], "what it changed", "grey: nothing"),
    figure(foreign.frame, "Another latent here", notes[1] + says(foreign)),
    figure(changes[1], "what it changed", "grey: nothing"),
  );
}

function buildAdd() {
  const paintAll = guarded(paintAdd);
  chosen.following = about.following;
  const setFirst = gallery("add-first", (n) => { chosen.first = n; paintAll(); }, { first: chosen.first });
  chosen.second = about.moving[0];
  gallery("add-second", (n) => { chosen.second = n; chosen.following = false; choose(); paintAll(); }, { first: chosen.second });
  const options = [["following", "what follows z₁ in its episode"], ["other", "the transition below"]].map(([value, text]) => {
    const input = h("input", { type: "radio", name: "second", value, disabled: value === "following" && !about.following });
    input.addEventListener("change", () => { chosen.following = value === "following"; choose(); paintAll(); });
    return h("label", {}, input, ` ${text}`);
  });
  $("add-choice").replaceChildren(...options);
  function choose() { for (const input of $("add-choice").querySelectorAll("input")) input.checked = (input.value === "following") === chosen.following; $("add-second").classList.toggle("idle", chosen.following); }
  choose();
  $("factor").addEventListener("input", paintAll);
  drawn.add = (_, n) => { if (n !== undefined) { chosen.first = n; setFirst(n); } paintAll(); };
  paintAll();
}

let addTurn = 0;
async function paintAdd() {
  const turn = ++addTurn;
  const { first } = chosen;
  const second = chosen.following ? following(first) : chosen.second;
  const c = Number($("factor").value);
  $("factor-value").textContent = c.toFixed(2);
  const [start, k] = [`d${first}`, state.k];
  const factors = [-1, 0, 0.5, 1, c];
  const [one, two, sum, undone, ...scaled] = await roll(
    { start, moves: [`${first}@${k}`] },
    { start, moves: [`${first}@${k}`, `${second}@${k}`] },
    { start, moves: [`1x${first}~1x${second}@${k}`] },
    { start, moves: [`${first}@${k}`, `-1x${first}@${k}`] },
    ...factors.map((factor) => ({ start, moves: [`${factor}x${first}@${k}`] })),
  );
  const frame = frameOf(first, 0);
  const truth = chosen.following ? frameOf(first, 2) : two.frame;
  const from = chosen.following ? "from what came" : "from the two steps";
  const [copied, stepped, summed, before, after] = await Promise.all([psnr(frame, truth), psnr(two.frame, truth), psnr(sum.frame, truth), psnr(one.frame, frame), psnr(undone.frame, frame)]);
  if (turn !== addTurn) return;
  $("add-sum").replaceChildren(
    figure(frame, "Start", `copy-frame: ${decibels(copied)} ${from}`),
    figure(one.frame, "z₁"),
    figure(two.frame, "z₁, then z₂", chosen.following ? `${decibels(stepped)} ${from}` : "two steps"),
    figure(sum.frame, "z₁ + z₂", `one step, ${decibels(summed)} ${from}`, true),
    ...(chosen.following ? [figure(truth, "What really came")] : []),
  );
  $("add-undo").replaceChildren(
    figure(frame, "Start"), figure(one.frame, "z₁", `${decibels(before)} from the start`), figure(undone.frame, "z₁, then −z₁", `${decibels(after)} from the start`, true));
  $("add-scale").replaceChildren(...scaled.map((step, n) => figure(step.frame, ["−z₁", "0 z₁", "½ z₁", "z₁", `c z₁, c = ${c.toFixed(2)}`][n], "", n === 4)));
  $("add-note").textContent = `Sums are taken ${about.sums} the quantiser (if the model has one), and cut to k slots afterwards. ` +
    "Only methods that are trained for it (alam, ac_lam, structured_prefix) can be expected to add up; a higher dB is closer.";
}

// ----------------------------------------------------------------------------------------------------------------- Map

const sky = { places: [], colours: [], colour: 0 };
const dark = matchMedia("(prefers-color-scheme: dark)");

function classColour(n, count) {
  const hue = (215 + (360 * n) / Math.max(count, 1)) % 360;
  return dark.matches ? `hsl(${hue} 75% ${n % 2 ? 72 : 62}%)` : `hsl(${hue} 70% ${n % 2 ? 34 : 44}%)`;
}
const rampColour = (share) => (dark.matches ? `hsl(${250 - 200 * share} 80% ${45 + 27 * share}%)` : `hsl(${250 - 200 * share} 75% ${32 + 14 * share}%)`);

function colourOf() {
  const { names, values } = sky.colours[sky.colour];
  if (names) return (n) => classColour(values[n], names.length);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return (n) => rampColour(high > low ? (values[n] - low) / (high - low) : 0);
}

function placeOf(n) {
  const { clientWidth: width, clientHeight: height } = $("sky");
  const [x, y] = sky.places[n];
  return [width / 2 + x * (width / 2 - 14), height / 2 - y * (height / 2 - 14)];
}

function paintSky() {
  const canvas = $("sky");
  const scale = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * scale;
  canvas.height = canvas.clientHeight * scale;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const colour = colourOf();
  context.globalAlpha = 0.85;
  sky.places.forEach((_, n) => {
    const [x, y] = placeOf(n);
    context.fillStyle = colour(n);
    context.beginPath();
    context.arc(x, y, 4, 0, 7);
    context.fill();
  });
  context.globalAlpha = 1;
  if (chosen.point !== null) {
    const [x, y] = placeOf(chosen.point);
    context.strokeStyle = getComputedStyle(document.body).color;
    context.lineWidth = 2.5;
    context.beginPath();
    context.arc(x, y, 8, 0, 7);
    context.stroke();
  }
}

function paintLegend() {
  const { names, values } = sky.colours[sky.colour];
  if (names) {
    const there = new Set(values);
    $("legend").replaceChildren(...names.flatMap((name, n) => {
      if (!there.has(n)) return [];
      const dot = h("i");
      dot.style.background = classColour(n, names.length);
      return [h("span", {}, dot, name || "none")];
    }));
    return;
  }
  const ramp = h("i", { className: "ramp" });
  ramp.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(rampColour).join(", ")})`;
  const round = (value) => Number(value.toPrecision(3)).toString();
  $("legend").replaceChildren(h("span", {}, round(Math.min(...values)), ramp, round(Math.max(...values))));
}

async function buildMap() {
  for (const option of $("map-method").options) option.disabled = option.value === "umap" && !about.umap;
  if (!about.umap) $("map-method").title = "UMAP needs its library: pip install umap-learn";
  async function load() {
    $("map-method").disabled = true;
    if ($("map-method").value === "umap") toast("UMAP is being computed; the first time this can take a minute.", true);
    try {
      const found = await json(`map/${$("map-method").value}`);
      sky.places = found.places;
      sky.colours = found.colours;
    } catch (error) {
      $("map-method").value = "pca";
      throw error;
    } finally {
      $("map-method").disabled = false;
    }
  }
  await load();
  const start = Math.max(0, sky.colours.findIndex((colour) => colour.name.startsWith("action")));
  $("map-colour").replaceChildren(...sky.colours.map((colour, n) => h("option", { value: n, selected: n === start }, colour.name)));
  sky.colour = start;
  const repaint = () => { paintLegend(); paintSky(); };
  $("map-method").addEventListener("change", guarded(async () => { await load(); repaint(); }));
  $("map-colour").addEventListener("change", () => { sky.colour = Number($("map-colour").value); repaint(); });
  const select = (n) => { chosen.point = n; paintSky(); guarded(paintPoint)(); };
  $("sky").addEventListener("click", (event) => {
    const box = $("sky").getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [nearest, least] = [0, Infinity];
    sky.places.forEach((_, n) => { const [a, b] = placeOf(n); const d = (a - x) ** 2 + (b - y) ** 2; if (d < least) [nearest, least] = [n, d]; });
    select(nearest);
  });
  $("sky").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    select((chosen.point + step + sky.places.length) % sky.places.length);
  });
  addEventListener("resize", () => { if (state.tab === "map") paintSky(); });
  dark.addEventListener("change", repaint);
  drawn.map = () => { repaint(); guarded(paintPoint)(); };
  repaint();
  select(about.first);
}

async function paintPoint() {
  const n = chosen.point;
  const [predicted] = await roll({ start: `d${n}`, moves: [`${n}@${state.k}`] });
  const [copied, hit] = await Promise.all([psnr(frameOf(n, 0), frameOf(n, 1)), psnr(predicted.frame, frameOf(n, 1))]);
  if (n !== chosen.point) return;
  const { episode, row, action, task } = about.transitions[n];
  const rows = [["Episode", `${episode}, row ${row}`], ["Action", action], ["Task", task], ["Read as", best(predicted.reading)],
    ...sky.colours.filter((colour) => !colour.name.startsWith("action") && colour.name !== "task").map(({ name, names, values }) => [name[0].toUpperCase() + name.slice(1), names ? names[values[n]] : values[n].toPrecision(3)])];
  const to = (text, act) => { const button = h("button", {}, text); button.addEventListener("click", act); return button; };
  $("point").replaceChildren(
    h("h2", {}, `Transition ${n}`),
    h("div", { className: "figures" }, figure(frameOf(n, 0), "Before", `${decibels(copied)} from after`), figure(frameOf(n, 1), "After"),
      figure(predicted.frame, "Predicted", `${decibels(hit)}, k = ${state.k}`, true)),
    h("dl", {}, ...rows.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("div", { className: "buttons" },
      to("Drive from here", async () => { await begin(`d${n}`); show("drive"); }),
      to("Transfer", () => { chosen.source = n; show("transfer", n); }),
      to("Add and undo", () => { chosen.first = n; show("add", n); })),
  );
}

// -------------------------------------------------------------------------------------------------------------- Health

const LEVELS = { bad: "failed", warn: "take care", good: "passed", note: "note" };

async function buildHealth() {
  $("diagnosis").replaceChildren(h("p", { className: "soft" }, "Measuring ..."));
  const examined = h("div", { className: "card" }, h("h2", {}, "What lamina doctor found"), h("p", { className: "soft" }, "Examining the run, about a minute ..."));
  const found = await json("health");
  const list = (findings) => h("ul", { className: "findings" }, ...findings.map(({ level, text }) => h("li", {}, h("span", { className: `chip ${level}` }, LEVELS[level] || level), h("span", {}, text))));
  const parts = found.parts.map(({ title, findings }) => h("div", { className: "card" }, h("h2", {}, title), list(findings)));
  if (found.missing.length) parts.push(h("div", { className: "card" }, h("h2", {}, "What is missing"), list(found.missing.map((text) => ({ level: "note", text })))));
  const side = [h("div", { className: "card" }, h("h2", {}, "This run"), h("dl", {}, ...found.facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])))];
  if (found.codes.length) {
    const bars = found.codes.map(({ slot, usage, perplexity }) => {
      const bar = h("b");
      bar.style.height = `${100 * usage}%`;
      return h("i", { title: `slot ${slot}: ${(100 * usage).toFixed(0)}% of the codes that could occur do, perplexity ${perplexity.toFixed(1)}` }, bar);
    });
    const least = found.codes.reduce((a, b) => (a.perplexity < b.perplexity ? a : b));
    side.push(h("div", { className: "card" }, h("h2", {}, "Codes in use, by slot"), h("div", { className: "codes" }, ...bars),
      h("p", { className: "soft" }, `Share of the codebook's entries, or of as many as there are transitions if those are fewer, that occur in each of the ${found.codes.length} slots, from the first to the last. ` +
        `The least varied is slot ${least.slot}, with perplexity ${least.perplexity.toFixed(1)}; 1 would be a constant.`)));
  }
  $("diagnosis").replaceChildren(h("div", {}, examined, ...parts), h("div", {}, ...side));
  try {
    const { title, findings } = await json("doctor");
    examined.replaceChildren(h("h2", {}, title), list(findings));
  } catch (error) {
    examined.lastChild.textContent = String(error.message || error);
  }
}

// ---------------------------------------------------------------------------------------------------------------- tabs

const BUILD = { drive: () => {}, transfer: buildTransfer, add: buildAdd, map: buildMap, health: buildHealth };

function show(tab, ...given) {
  state.tab = tab;
  for (const name of TABS) {
    $(name).hidden = name !== tab;
    $(`tab-${name}`).setAttribute("aria-selected", String(name === tab));
    $(`tab-${name}`).tabIndex = name === tab ? 0 : -1;
  }
  release();
  remember();
  if (!(tab in drawn)) {
    drawn[tab] = () => {};
    guarded(BUILD[tab])(...given);
  } else drawn[tab](false, ...given);
}

function buildTabs() {
  TABS.forEach((name, n) => {
    $(`tab-${name}`).addEventListener("click", () => show(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = TABS[(n + step + TABS.length) % TABS.length];
      show(next);
      $(`tab-${next}`).focus();
    });
  });
  for (const input of document.querySelectorAll("input.k")) input.addEventListener("input", () => { setK(about.prefixes[input.value]); drawn[state.tab](true); });
}

guarded(async () => {
  about = await json("about");
  document.documentElement.style.setProperty("--shape", `${about.image[1]} / ${about.image[0]}`);
  document.title = `${about.run} - Lamina play`;
  $("run").textContent = `${about.method}, ${about.run}, on ${about.data}`;
  $("footer").textContent = `lamina ${about.version}, seed ${about.seed}, ${about.transitions.length} transitions of the ${about.split} split, ` +
    `${about.gap.toPrecision(2)} s from frame to frame. Everything runs on this machine.`;
  buildTabs();
  buildDrive();
  setK(about.prefixes[about.prefixes.length - 1]);
  chosen.source = chosen.first = about.first;
  const repeated = await repeat(location.hash).catch((error) => { toast(error.message); return false; });
  if (!repeated) await become(`d${about.first}`, []);
  document.body.dataset.ready = "yes";
})();
