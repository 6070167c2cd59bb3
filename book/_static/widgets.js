// The widget manager's modules look for their fonts beside the page; the fonts are beside the manager.
const manager = new URL("vendor/html-manager", document.currentScript.src).href;
requirejs.config({
  paths: { "@jupyter-widgets/html-manager": `${manager}/index`, "@jupyter-widgets/html-manager/dist": manager },
});

// The manager has 4 MB: the pages whose widgets are all alive do without it (live/start.js calls this on the others).
// It draws when the page has been loaded, for which the browser waits for this script too.
window.fetchWidgetManager = () => {
  const script = document.createElement("script");
  script.src = `${manager}/embed-amd.js`;
  document.head.append(script);
};

// A slider's handle has no name of its own: give it that of its label, for those who hear the page.
new MutationObserver(() => {
  for (const handle of document.querySelectorAll('.widget-slider [role="slider"]:not([aria-label])')) {
    const label = handle.closest(".widget-slider").querySelector(".widget-label");
    handle.setAttribute("aria-label", (label && label.textContent.trim()) || "slider");
  }
}).observe(document, { childList: true, subtree: true });

// The manager typesets labels with the interface of MathJax 2; the pages have MathJax 3. When this event comes, MathJax
// has been loaded (its script is deferred) and no widget has been drawn yet.
document.addEventListener("DOMContentLoaded", () => {
  if (window.MathJax && MathJax.startup && !MathJax.Hub) {
    const typeset = (element) => MathJax.startup.promise.then(() => MathJax.typesetPromise([element]));
    MathJax.Hub = { Queue: ([, , element]) => typeset(element) };
  }
});
