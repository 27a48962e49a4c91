// One line drawing for each page, in the colour of its words.
import { html } from "./dom.js";

const DRAWN = {
  home: "M4 11 12 4l8 7v9h-5v-6H9v6H4z",
  chat: "M4 5h16v11h-9l-4 4v-4H4z",
  plans: "M4 5h16v5H4zM4 14h7v5H4zM15 14h5v5h-5z",
  models: "M12 3 20 7.5v9L12 21l-8-4.500v-9zM4 7.5 12 12l8-4.500M12 12v9",
  billing: "M4 6h16v12H4zM4 10h16M8 14h4",
  audit: "M12 3l7 3v5c0 5-3 8-7 10-4-2-7-5-7-10V6zM9 12l2 2 4-4",
  devices: "M3 5h13v9H3zM3 18h13M18 9h3v11h-3z",
  settings: "M4 7h9M17 7h3M4 12h3M11 12h9M4 17h7M15 17h5M13 5v4M7 10v4M11 15v4",
  launch: "M4 5h16v14H4zM8 10l3 2.500L8 15M13 15h4",
};

export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${DRAWN[name]} /></svg>`;
