"use strict";
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const clips = all(".clip"), status = document.getElementById("status");
  const levels = document.getElementById("levels"), through = document.getElementById("through");
  const help = document.getElementById("help");
  const sound = (clip) => clip.querySelector("audio");
  const on = (button) => button.getAttribute("aria-pressed") === "true";
  const flip = (button) => button.setAttribute("aria-pressed", String(!on(button)));
  const seen = () => clips.filter((clip) => clip.offsetParent !== null);
  let current = null;

  // Web Audio would take sounds of a file:// page for another site's and play silence; the
  // element's own volume works everywhere but on iPhones, where pages may not set it.
  const probe = new Audio();
  probe.volume = 0.5;
  if (probe.volume !== 0.5) {
    levels.disabled = true;
    levels.setAttribute("aria-pressed", "false");
    levels.title = "This device does not let pages set a volume";
  }
  const level = (clip) => { sound(clip).volume = on(levels) ? Number(clip.dataset.gain) : 1; };

  const place = (clip) => {
    const share = sound(clip).currentTime / Number(clip.dataset.span);
    clip.style.setProperty("--at", String(Math.min(1, share)));
    if (!sound(clip).paused) requestAnimationFrame(() => place(clip));
  };

  const stop = () => all("audio").forEach((audio) => { if (!audio.paused) audio.pause(); });

  const take = (clip) => {
    if (current) current.classList.remove("current");
    current = clip;
    clip.classList.add("current");
  };

  const choose = (clip) => {
    take(clip);
    clip.querySelector(".play").focus({ preventScroll: true });
    clip.scrollIntoView({ block: "nearest", inline: "nearest" });
  };

  const play = (clip) => {
    stop();
    choose(clip);
    level(clip);
    const audio = sound(clip);
    if (audio.ended || audio.currentTime >= audio.duration) audio.currentTime = 0;
    audio.play().catch((error) => { status.textContent = `Cannot be played: ${error.message}`; });
  };

  const toggle = (clip) => { if (sound(clip).paused) play(clip); else sound(clip).pause(); };

  const step = (by) => {
    const list = seen(), at = list.indexOf(current);
    const next = at < 0 ? list[by > 0 ? 0 : list.length - 1] : list[at + by];
    if (!next) return;
    sound(next).currentTime = 0;
    play(next);
  };

  const nearest = () => {
    const duo = current && current.closest(".duo");
    const other = duo && all(".clip", duo).find((clip) => clip !== current);
    if (other) { sound(other).currentTime = 0; play(other); }
  };

  const show = (label) => {
    all(".chip").forEach((c) => c.setAttribute("aria-pressed", String(c.dataset.show === label)));
    all("[data-label]").forEach((part) => {
      part.hidden = label !== "" && part.dataset.label !== label;
    });
  };

  clips.forEach((clip) => {
    const audio = sound(clip), button = clip.querySelector(".play");
    const name = button.getAttribute("aria-label").replace(/^Play /, "");
    audio.controls = false;
    button.addEventListener("click", () => toggle(clip));
    audio.addEventListener("play", () => {
      clip.classList.add("playing");
      button.setAttribute("aria-label", `Pause ${name}`);
      status.textContent = `Playing ${name}`;
      place(clip);
    });
    audio.addEventListener("pause", () => {
      clip.classList.remove("playing");
      button.setAttribute("aria-label", `Play ${name}`);
      place(clip);
    });
    audio.addEventListener("ended", () => {
      if (on(through) && clip === current) setTimeout(() => { if (clip === current) step(1); }, 300);
    });
    audio.addEventListener("error", () => clip.classList.add("broken"));
  });
  all(".chip").forEach((chip) => chip.addEventListener("click", () => show(chip.dataset.show)));
  levels.addEventListener("click", () => { flip(levels); clips.forEach(level); });
  through.addEventListener("click", () => flip(through));
  document.getElementById("keys").addEventListener("click", () => help.showModal());

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const own = event.target.closest("button:not(.play), a, .scroll");
    const visible = current && current.offsetParent !== null ? current : seen()[0];
    const keys = {
      " ": () => { if (visible) toggle(visible); },
      ArrowRight: () => step(1),
      ArrowLeft: () => step(-1),
      n: nearest,
      l: () => levels.click(),
      p: () => through.click(),
      Escape: stop,
      "?": () => help.showModal(),
    };
    const focused = event.target.closest(".clip");
    if (focused && focused !== current && event.key !== "Tab") take(focused);
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (own && (key === " " || key === "Enter" || key.startsWith("Arrow"))) return;
    const chip = all(".chip").find((one) => one.dataset.key === key);
    if (chip) {
      show(chip.dataset.show);
    } else if (keys[key]) {
      keys[key]();
    } else {
      return;
    }
    event.preventDefault();
  });
  document.addEventListener("keyup", (event) => { // where a button is clicked as the key goes up
    if (event.key === " " && event.target.closest(".play")) event.preventDefault();
  });
})();
