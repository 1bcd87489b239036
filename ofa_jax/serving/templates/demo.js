// The image and the box on it. Gradio's own parts ask `ofaDemo.question()` what is asked about.
window.ofaDemo = (() => {
  const state = {image: null, region: null, example: ""};
  const limits = JSON.parse("__LIMITS__");
  const examples = JSON.parse("__EXAMPLES__");
  const at = (id) => document.getElementById(id);
  const corners = ["x0", "y0", "x1", "y1"];
  let start = null;

  function say(sentence) {
    at("ofa-image-status").textContent = sentence || "";
  }

  function show(image, region) {
    state.image = image;
    at("ofa-stage").hidden = !image;
    at("ofa-empty").hidden = !!image;
    at("ofa-remove").hidden = !image;
    at("ofa-region").hidden = !image;
    if (image) {
      const preview = at("ofa-preview"), stage = at("ofa-stage");
      preview.src = image.preview;
      // Small images are enlarged, and none is higher than the form beside it.
      stage.style.maxWidth = `${Math.max(1, Math.round(420 * image.width / image.height))}px`;
      preview.style.aspectRatio = `${image.width} / ${image.height}`;
      preview.style.width = "100%";
      at("ofa-overlay").setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
      at("ofa-size").textContent = `${image.width} × ${image.height} pixels`;
    } else {
      at("ofa-preview").removeAttribute("src");
    }
    setRegion(region || null, true);
    say("");
  }

  function setRegion(region, fill) {
    state.region = region;
    if (fill) corners.forEach((name, i) => { at(`ofa-${name}`).value = region ? region[i] : ""; });
    const box = at("ofa-box");
    const whole = region && region.every((x) => Number.isFinite(x));
    box.setAttribute("visibility", whole ? "visible" : "hidden");
    if (whole) {
      box.setAttribute("x", Math.min(region[0], region[2]));
      box.setAttribute("y", Math.min(region[1], region[3]));
      box.setAttribute("width", Math.abs(region[2] - region[0]));
      box.setAttribute("height", Math.abs(region[3] - region[1]));
    }
  }

  async function upload(file) {
    if (!file) return;
    if (file.size > limits.bytes) {
      say(`${file.name || "The image"} has ${file.size.toLocaleString("en")} bytes; the limit is ` +
          `${limits.bytes.toLocaleString("en")}: choose a smaller one.`);
      return;
    }
    say("Reading the image …");
    try {
      const response = await fetch("demo/image", {
        method: "POST", body: file, headers: {"Content-Type": "application/octet-stream"}});
      const answer = await response.json();
      if (answer.error) say(answer.error); else show(answer, null);
    } catch (error) {
      say("The server does not answer: is it still running?");
    }
  }

  // Pixels of the image under the pointer.
  function place(event) {
    const frame = at("ofa-preview").getBoundingClientRect();
    const clip = (x, most) => Math.min(Math.max(Math.round(x), 0), most);
    return [clip((event.clientX - frame.left) / frame.width * state.image.width, state.image.width),
            clip((event.clientY - frame.top) / frame.height * state.image.height, state.image.height)];
  }

  function drag(event) {
    const end = place(event);
    setRegion([Math.min(start[0], end[0]), Math.min(start[1], end[1]),
               Math.max(start[0], end[0]), Math.max(start[1], end[1])], true);
  }

  document.addEventListener("pointerdown", (event) => {
    if (event.button || !state.image || !event.target.closest("#ofa-stage")) return;
    event.preventDefault();
    start = place(event);
  });
  document.addEventListener("pointermove", (event) => { if (start) drag(event); });
  document.addEventListener("pointerup", (event) => {
    if (!start) return;
    drag(event);
    const [x0, y0, x1, y1] = state.region;
    if (x1 - x0 < 2 || y1 - y0 < 2) setRegion(null, true);  // a click takes the box away
    start = null;
  });
  document.addEventListener("pointercancel", () => { start = null; });
  document.addEventListener("dragover", (event) => {
    if (event.target.closest && event.target.closest("#ofa-viewer")) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!event.target.closest || !event.target.closest("#ofa-viewer")) return;
    event.preventDefault();
    upload(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) { event.preventDefault(); upload(file); }
  });
  document.addEventListener("change", (event) => {
    if (event.target.id !== "ofa-file") return;
    upload(event.target.files[0]).then(() => { event.target.value = ""; });
  });
  document.addEventListener("input", (event) => {
    if (!corners.some((name) => event.target.id === `ofa-${name}`)) return;
    const texts = corners.map((name) => at(`ofa-${name}`).value.trim());
    setRegion(texts.every((text) => !text) ? null
      : texts.map((text) => text ? Number(text) : NaN), false);
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest) return;
    if (event.target.closest("#ofa-clear")) setRegion(null, true);
    if (event.target.closest("#ofa-remove")) show(null);
    const chosen = event.target.closest("[data-example]");
    if (!chosen) return;
    const example = examples[Number(chosen.dataset.example)];
    show(example.image, example.region);
    state.example = chosen.dataset.example;
    document.querySelector("#ofa-load button, button#ofa-load").click();
    at("ofa-viewer").scrollIntoView({behavior: "smooth", block: "nearest"});
  });

  return {
    example: () => state.example,
    question: () => JSON.stringify({
      key: state.image && state.image.key,
      region: state.region && state.region.map((x) => Number.isFinite(x) ? x : null),
    }),
  };
})();
