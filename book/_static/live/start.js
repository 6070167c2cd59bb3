// On every page: finds the widgets. Those that need the model alone come alive (chapter.js), the others are still
// pictures here and say so. A classic script, since a page that was opened as a file may load no modules.
(() => {
  const LIVE = ["continue_text", "stream_text", "routed_text", "sampling_player", "chat_box"];
  const here = document.currentScript.src;
  const is_file = location.protocol === "file:";
  const serve = "This page was opened as a file, and a browser lets no file fetch a model: run make serve and open " +
    "http://127.0.0.1:8000/ instead.";
  const failed = "What should be here could not be started: reload the page, or try a newer browser.";

  function note(text) {
    const line = document.createElement("p");
    line.className = "live-note";
    line.textContent = text;
    return line;
  }

  function found() {
    const places = [];
    for (const view of document.querySelectorAll('.cell script[type="application/vnd.jupyter.widget-view+json"]')) {
      const code = view.closest(".cell").querySelector(".cell_input")?.textContent ?? "";
      const kind = LIVE.find((name) => new RegExp(`(^|\\W)${name}\\(`).test(code));
      const box = document.createElement("div"); // the manager will draw the controls into it
      view.replaceWith(box);
      box.append(view);
      places.push({ view, box, code, kind });
    }
    return places;
  }

  function keep_still({ box }) {
    box.inert = true;
    box.classList.add("live-still");
    box.before(note("A still picture of a widget: its controls need Python. Open the chapter with make lab to move them."));
  }

  document.addEventListener("DOMContentLoaded", () => {
    const talk = document.getElementById("talk");
    const live = [];
    for (const place of found()) {
      if (place.kind && is_file) {
        place.box.replaceChildren(note(serve)); // instead of controls that could do nothing
      } else if (place.kind) {
        live.push(place);
      } else {
        keep_still(place);
      }
    }
    if (document.querySelector(".live-still")) window.fetchWidgetManager?.(); // from a CDN it is there already
    if (talk && is_file) talk.replaceChildren(note(serve));
    if (is_file) return;
    if (talk) import(new URL("talk.js", here)).then((module) => module.start(talk))
      .catch(() => talk.replaceChildren(note(failed)));
    for (const place of live) {
      // before the manager looks for it: it would draw the controls of JupyterLab
      place.id = JSON.parse(place.view.textContent).model_id;
      place.view.remove();
    }
    if (live.length) import(new URL("chapter.js", here)).then((module) => module.start(live))
      .catch(() => live.forEach(({ box }) => box.replaceChildren(note(failed))));
  });
})();
