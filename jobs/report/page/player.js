"use strict";
// Clips that play in step: a deck holds the clips of one card, and all of them follow its clock.
// Decks that play together share one clock.

const STEP_S = 0.03; // out of step by less is left alone
const JUMP_S = 0.2; // by more is put right with a jump, in between with another rate
const decks = new Set();
let drawing = null;

class Clock {
  constructor(seconds = 0) {
    this.seconds = seconds;
    this.since = null;
  }
  get playing() {
    return this.since !== null;
  }
  now() {
    return this.seconds + (this.playing ? (performance.now() - this.since) / 1000 : 0);
  }
  seek(seconds) {
    this.seconds = seconds;
    if (this.playing) this.since = performance.now();
  }
  play() {
    this.since ??= performance.now();
    drawing ??= requestAnimationFrame(draw);
  }
  pause() {
    this.seconds = this.now();
    this.since = null;
  }
}

const sharedClock = new Clock();

/** A play button, a slider over the frames and the number of the frame. */
class Transport {
  constructor(name, { toggle, scrub }) {
    this.name = name;
    this.button = h("button.play", { type: "button", onclick: toggle });
    this.slider = h("input", { type: "range", min: 0, value: 0, "aria-label": `Frame of ${name}` });
    this.slider.addEventListener("input", () => scrub(Number(this.slider.value)));
    this.output = h("span.frame-number", { "aria-hidden": "true" });
    this.elements = [this.button, this.slider, this.output];
  }
  show(frame, frames, playing) {
    const label = `${playing ? "Pause" : "Play"} ${this.name}`;
    if (this.button.getAttribute("aria-label") !== label) {
      this.button.setAttribute("aria-label", label);
      this.button.textContent = playing ? "❚❚" : "▶";
    }
    this.slider.max = frames - 1;
    this.slider.value = frame;
    this.slider.style.setProperty("--at", `${(100 * frame) / Math.max(1, frames - 1)}%`);
    this.slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
    this.output.textContent = `${frame + 1} / ${frames}`;
  }
}

class Deck {
  constructor(name, element, frames, fps) {
    this.videos = [];
    this.frames = frames || 1;
    this.fps = fps || 8;
    this.visible = false;
    this.clock = sharedClock;
    this.transport = new Transport(name, {
      toggle: () => this.toggle(),
      scrub: (frame) => this.scrub(frame),
    });
    this.element = element;
    element.deck = this;
    onScreen.observe(element);
    decks.add(this);
    this.show();
  }
  get duration() {
    return this.frames / this.fps;
  }
  get frame() {
    const seconds = this.clock.now() % this.duration;
    return Math.min(this.frames - 1, Math.floor(seconds * this.fps + 1e-6));
  }
  add(video) {
    video.deck = this;
    this.videos.push(video);
    video.addEventListener("loadeddata", () => this.settle());
    nearScreen.observe(video);
  }
  toggle() {
    const playing = this.clock.playing;
    this.leaveOthers();
    if (playing) this.clock.pause();
    else this.clock.play();
    this.settle();
  }
  scrub(frame) {
    this.leaveOthers();
    this.clock.seek((frame + 0.5) / this.fps); // the middle of a frame: no rounding picks another
    this.settle();
  }
  leaveOthers() {
    if (this.clock !== sharedClock) return;
    this.clock = new Clock(sharedClock.now());
    if (sharedClock.playing) this.clock.play();
  }
  /** Bring every clip to where the clock is: playing, or still on one frame. */
  settle() {
    const moving = this.clock.playing && this.visible;
    for (const video of this.videos.filter((video) => video.readyState > 0)) {
      if (moving) keepInStep(video, this.clock.now() % this.duration, this.duration);
      else {
        video.pause();
        const still = (this.frame + 0.5) / this.fps;
        if (!this.clock.playing && Math.abs(video.currentTime - still) > 1e-3) video.currentTime = still;
      }
    }
    this.show();
  }
  show() {
    this.transport.show(this.frame, this.frames, this.clock.playing);
  }
  close() {
    decks.delete(this);
    onScreen.unobserve(this.element);
    for (const video of this.videos) {
      nearScreen.unobserve(video);
      video.removeAttribute("src"); // gives its decoder and its memory back
      video.load();
    }
  }
}

function keepInStep(video, seconds, length) {
  if (video.paused) {
    video.currentTime = seconds;
    video.play().catch(() => {}); // the browser may refuse until the page is clicked
    return;
  }
  let ahead = video.currentTime - seconds;
  ahead -= Math.round(ahead / length) * length; // the clips loop: the nearest way round
  if (Math.abs(ahead) > JUMP_S && !video.seeking) video.currentTime = seconds;
  const rate = Math.abs(ahead) < STEP_S ? 1 : ahead > 0 ? 0.85 : 1.15;
  if (video.playbackRate !== rate) video.playbackRate = rate;
}

function draw() {
  const moving = [...decks].filter((deck) => deck.clock.playing);
  for (const deck of moving) if (deck.visible) deck.settle();
  together.show();
  drawing = moving.length || sharedClock.playing ? requestAnimationFrame(draw) : null;
}

/** The controls of all decks of the page at once. */
const together = {
  transport: new Transport("all clips", {
    toggle: () => together.gather(() => (sharedClock.playing ? sharedClock.pause() : sharedClock.play())),
    scrub: (frame) => together.gather((longest) => sharedClock.seek((frame + 0.5) / longest.fps)),
  }),
  longest: () => [...decks].reduce((a, b) => (b.duration > (a?.duration ?? 0) ? b : a), null),
  gather(change) {
    for (const deck of decks) deck.clock = sharedClock;
    change(this.longest());
    for (const deck of decks) deck.settle();
    this.show();
  },
  show() {
    const deck = this.longest();
    const frames = deck?.frames ?? 1;
    const seconds = deck ? sharedClock.now() % deck.duration : 0;
    const frame = Math.min(frames - 1, Math.floor(seconds * (deck?.fps ?? 1) + 1e-6));
    this.transport.show(frame, frames, sharedClock.playing);
  },
};

// A clip is loaded when it comes near the screen, and plays while its card is on it.
const nearScreen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    nearScreen.unobserve(target);
    target.src = target.dataset.src;
  }
}, { rootMargin: "400px" });

const onScreen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    target.deck.visible = isIntersecting;
    target.deck.settle();
  }
});
