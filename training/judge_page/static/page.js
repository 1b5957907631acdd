"use strict";
// Uploads with a progress bar, waiting without reloading, and trimming with the video. Without it, the forms work alike.

const $ = (id) => document.getElementById(id);

function startUpload(form) {
  const file = $("file"), message = $("message"), progress = $("progress"), button = form.querySelector("button");
  const limit = Number(form.dataset.limit);

  function say(text) {
    message.textContent = text;
    message.hidden = !text;
    progress.hidden = true;
    button.disabled = false;
  }

  function send(video) {
    say("");
    if (video.size > limit) {
      say(`The file has ${Math.ceil(video.size / 1048576)} MiB, more than the limit of ${Math.floor(limit / 1048576)} MiB: cut the video to one action.`);
      return;
    }
    const body = new FormData(), request = new XMLHttpRequest();
    body.append("video", video);
    progress.value = 0;
    progress.hidden = false;
    button.disabled = true;
    request.upload.onprogress = (event) => { progress.value = event.loaded / event.total; };
    request.onerror = () => say("The connection was lost: check that the page and the tunnel still run, then send the video again.");
    request.onload = () => {
      // the page of the clip, also if the clip has failed already: it says why
      if (request.responseURL !== form.action) { location.assign(request.responseURL); return; }
      let text = "The page refused the video.";
      try { text = JSON.parse(request.responseText).error || text; } catch { /* not from this page */ }
      say(text);
    };
    request.open("POST", form.action);
    request.setRequestHeader("Accept", "application/json, text/html");
    request.send(body);
  }

  button.hidden = true;
  file.addEventListener("change", () => { if (file.files.length) send(file.files[0]); });
  form.addEventListener("submit", (event) => { event.preventDefault(); if (file.files.length) send(file.files[0]); });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); form.classList.add("over"); });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) form.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    const dropped = event.dataTransfer.files;
    if (dropped.length > 1) { say("Drop one video at a time."); return; }
    if (dropped.length) send(dropped[0]);
  });
}

function startWaiting(section) {
  async function ask() {
    try {
      const answer = await fetch(section.dataset.status, { cache: "no-store" });
      if (!answer.ok) { location.reload(); return; }
      const { state, text } = await answer.json();
      if (state !== section.dataset.state) { location.reload(); return; }
      if ($("status").textContent !== text) $("status").textContent = text;
    } catch {
      $("status").textContent = "The connection was lost: check that the page and the tunnel still run.";
    }
    setTimeout(ask, 700);
  }
  setTimeout(ask, 400);
}

function startTrimming(form) {
  const frames = Number(form.dataset.frames), rate = Number(form.dataset.rate);
  const video = $("preview"), strip = [...form.querySelectorAll(".strip img")];
  const numbers = { start: $("start"), end: $("end") };
  const sliders = { start: $("start-slider"), end: $("end-slider") };
  const pictures = { start: $("first"), end: $("last") };
  let stopAt = null;

  const nearest = (frame) => strip.reduce((a, b) => (Math.abs(b.dataset.frame - frame) < Math.abs(a.dataset.frame - frame) ? b : a));

  function show(changed) {
    const start = Number(numbers.start.value), end = Number(numbers.end.value);
    sliders.start.value = start;
    sliders.end.value = end;
    $("start-time").value = `${((start - 1) / rate).toFixed(2)} s`;
    $("end-time").value = `${(end / rate).toFixed(2)} s`;
    const half = frames / strip.length; // every second picture is shown
    for (const picture of strip) {
      const frame = Number(picture.dataset.frame);
      picture.classList.toggle("outside", frame + half < start || frame - half > end);
    }
    for (const side of ["start", "end"]) pictures[side].src = nearest(Number(numbers[side].value)).src;
    if (changed && !video.hidden) {
      video.pause();
      video.currentTime = (Number(numbers[changed].value) - 0.5) / rate;
    }
  }

  function set(side, text) {
    const wanted = Math.round(Number(text));
    if (!Number.isFinite(wanted) || !text) return;
    const low = side === "start" ? 1 : Number(numbers.start.value), high = side === "start" ? Number(numbers.end.value) : frames;
    numbers[side].value = Math.min(Math.max(wanted, low), high);
    show(side);
  }

  for (const side of ["start", "end"]) {
    sliders[side].hidden = false;
    sliders[side].addEventListener("input", () => set(side, sliders[side].value));
    numbers[side].addEventListener("change", () => set(side, numbers[side].value));
  }

  function setPlays(plays) {
    video.hidden = !plays;
    $("frames").hidden = plays;
    for (const button of form.querySelectorAll(".plays")) button.hidden = !plays;
  }
  video.addEventListener("error", () => setPlays(false));
  video.addEventListener("loadedmetadata", () => setPlays(video.videoWidth > 0)); // 0: the browser plays the sound only
  if (video.error) setPlays(false); else if (video.readyState >= 1) setPlays(video.videoWidth > 0);
  for (const side of ["start", "end"]) {
    $(`${side}-here`).addEventListener("click", () => set(side, String(Math.floor(video.currentTime * rate) + 1)));
  }
  $("play").addEventListener("click", () => {
    video.currentTime = (Number(numbers.start.value) - 0.5) / rate;
    stopAt = Number(numbers.end.value) / rate;
    video.play();
  });
  video.addEventListener("timeupdate", () => {
    if (stopAt !== null && video.currentTime >= stopAt) { video.pause(); stopAt = null; }
  });
  form.addEventListener("submit", () => { form.querySelector("button.main").disabled = true; });
  show("start");
}

if ($("upload")) startUpload($("upload"));
if ($("wait")) startWaiting($("wait"));
if ($("trim")) startTrimming($("trim"));
