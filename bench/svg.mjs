// Draws charts as SVG text with echarts, without a browser.
import * as echarts from 'echarts';

export const kFont = { fontFamily: 'sans-serif', fontSize: 12 };

/**
 * Draws a chart.
 * @param option echarts' option; white ground, sans-serif text and no animation unless it says otherwise
 * @returns an SVG document
 */
export function svgOf(option, { width, height }) {
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width, height });
  chart.setOption({ animation: false, backgroundColor: '#ffffff', textStyle: kFont, ...option });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return `${withoutCounters(svg)}\n`;
}

/** Removes hover styles, and numbers that count the charts drawn before, which would make each drawing different. */
function withoutCounters(svg) {
  return svg
    .replace(/<style[\s\S]*?<\/style>/g, '')
    .replace(/ class="zr[^"]*"/g, '')
    .replace(/\bzr\d+-/g, 'zr-');
}
